import pytest

from facttune_ray.config import Config, EndpointConfig, LLMConfig, RunConfig, load
from facttune_ray.errors import UserError
from facttune_ray.stages import connect


def config(**llm) -> Config:
    return Config(run=RunConfig(out="/tmp/run"), llm=LLMConfig(**llm))


def test_one_endpoint_unless_several_are_named():
    (only,) = connect.endpoints_of(config(requests_per_minute=60), "http://x")
    assert only == EndpointConfig("http://x", "OPENAI_API_KEY", 60, None)
    named = [EndpointConfig(api_key_env="A"), EndpointConfig("http://y", "B", 600, 9000)]
    first, second = connect.endpoints_of(config(endpoints=named, tokens_per_minute=50), "http://x")
    assert first == EndpointConfig("http://x", "A", None, 50)
    assert second == EndpointConfig("http://y", "B", 600, 9000)


def test_batch_mode_needs_one_endpoint():
    with pytest.raises(UserError, match="give one endpoint"):
        connect.endpoints_of(config(mode="batch", endpoints=[EndpointConfig()] * 2), "")


def test_the_ledger_may_be_shared_and_knows_its_run():
    assert connect.ledger_folder(config()).path == "/tmp/run/ledger"
    assert connect.ledger_folder(config(ledger="/tmp/shared")).path == "/tmp/shared"
    other = Config(run=RunConfig(out="/tmp/other"))
    assert connect.run_id(config()) != connect.run_id(other)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("llm.requests_per_minute=0", "at least 1"),
        ("llm.budget_usd=-1", "above 0"),
        ("llm.flush_s=0", "above 0"),
        ("llm.params.messages=x", "llm.params.messages: set llm.messages"),
        ("llm.endpoints=[{tokens_per_minute: 0}]", "llm.endpoints[0].tokens_per_minute=0"),
        ("llm.mode=offline", "llm.mode"),
    ],
)
def test_settings_that_are_refused(override, says):
    with pytest.raises(UserError) as refused:
        load(["quickstart"], [override])
    assert says in str(refused.value) and "\n" not in str(refused.value)
