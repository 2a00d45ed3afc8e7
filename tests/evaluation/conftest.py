import pyarrow as pa
import pytest


@pytest.fixture(scope="session")
def counts_of():
    """counts_of({topic: [(correct, incorrect) or (correct, incorrect, words), ...]})"""

    def make(topics):
        rows = [(t, c, i, *w) for t, some in topics.items() for c, i, *w in some]
        judged = [r[1] + r[2] for r in rows]
        no, zeros = [False] * len(rows), [0] * len(rows)
        return pa.table(
            {
                "topic": [r[0] for r in rows],
                "correct": [r[1] for r in rows],
                "incorrect": [r[2] for r in rows],
                "supported": [r[1] for r in rows],
                "words": [r[3] if len(r) > 3 else 0 for r in rows],
                **dict.fromkeys(("facts", "total_facts", "judged"), judged),
                **dict.fromkeys(("unknown", "repeated"), zeros),
                **dict.fromkeys(("no_facts", "no_article", "failed", "abstained"), no),
            }
        )

    return make
