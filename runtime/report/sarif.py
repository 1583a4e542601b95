"""Writes a comparison as SARIF 2.1.0, which code hosts show as annotations of a change."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import PurePath
from typing import Any

from onnxfold.runtime.report.findings import findings

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(comparison: dict[str, Any]) -> str:
    """Render a comparison (as ``Comparison.to_json`` gives it) as a SARIF log.

    One result for each reason: an error where the contract is broken, a warning where it could not
    be decided; no result where it holds.
    """
    contract = comparison["contract"]
    rule = {
        "id": f"contract/{contract}",
        "shortDescription": {"text": f"the candidate keeps the {contract} contract"},
    }
    results = [
        {
            "ruleId": rule["id"],
            "level": "error" if each.conclusive else "warning",
            "message": {"text": each.text},
            "locations": [_location(comparison["candidate"], each.about)],
        }
        for each in findings(comparison)
    ]
    tool = {
        "driver": {
            "name": "onnxfold",
            "semanticVersion": metadata.version("onnxfold"),
            "rules": [rule],
        }
    }
    run = {"tool": tool, "results": results, "columnKind": "unicodeCodePoints"}
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2) + "\n"


def _location(candidate: str, about: str) -> dict[str, Any]:
    return {
        "physicalLocation": {"artifactLocation": {"uri": PurePath(candidate).as_posix()}},
        "logicalLocations": [{"fullyQualifiedName": about, "kind": "member"}],
    }
