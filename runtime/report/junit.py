"""Writes a comparison as JUnit XML, which every continuous integration shows as tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from onnxfold.runtime.report.findings import REST, Finding, findings

_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML 1.0 has no way to write; names in a model may hold any."""


def to_junit(comparison: dict[str, Any]) -> str:
    """Render a comparison (as ``Comparison.to_json`` gives it) as JUnit XML.

    Each output is a test case, and each loss; what is about no output alone is the case
    ``structure``. What broke the contract is a failure, what could not be decided an error.
    """
    cases = list(_cases(comparison))
    broken = [found for _, found in cases if found]
    failures = sum(1 for found in broken if found[0].conclusive)
    suite = ElementTree.Element(
        "testsuite",
        name="onnxfold verify",
        tests=str(len(cases)),
        failures=str(failures),
        errors=str(len(broken) - failures),
        skipped="0",
        time=f"{comparison['seconds']:.3f}",
    )
    for name, found in cases:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_text(comparison["candidate"]), name=_text(name)
        )
        if found:
            kind = "failure" if found[0].conclusive else "error"
            element = ElementTree.SubElement(
                case, kind, type=comparison["contract"], message=_text(found[0].text)
            )
            element.text = _text("\n".join(each.text for each in found))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _cases(comparison: dict[str, Any]) -> Iterator[tuple[str, list[Finding]]]:
    found = findings(comparison)
    outputs = [f"output {each['name']}" for each in comparison["deployment"]]
    losses = [f"loss {each['loss']}" for each in comparison["losses"]]
    for name in (REST, *outputs, *losses):
        yield name, [each for each in found if each.about == name]


def _text(text: object) -> str:
    return _NO_XML.sub("\ufffd", str(text))
