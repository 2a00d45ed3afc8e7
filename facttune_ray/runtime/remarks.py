"""What a manifest says beside the number of rows, in words."""

from __future__ import annotations


def remarks(manifest: dict, ledger: str) -> list[str]:
    """Requests, dollars, the model's path, errors, and what is not known of the payments; `ledger`:
    the folder of the run's ledger."""
    parts = []
    if manifest.get("calls") or manifest.get("cached"):
        parts.append(f"{manifest['calls']:,} calls, {manifest['cached']:,} from the ledger")
    if manifest.get("cost_usd"):
        parts.append(f"${manifest['cost_usd']:.2f}")
    if manifest.get("path"):
        parts.append(f"model path: {manifest['path']}")
    if manifest.get("errors"):
        parts.append(f"{manifest['errors']:,} errors")
    if estimated := manifest.get("estimated"):
        parts.append(f"{estimated:,} answers without usage: their tokens are estimates")
    if unknown := manifest.get("unknown"):
        parts.append(
            f"{unknown:,} requests may have been paid twice or for nothing "
            f"(${manifest['unknown_usd']:.2f}): `facttune ledger verify {ledger}` lists them"
        )
    return parts
