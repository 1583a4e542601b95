"""Compile magika to int8 and compare both versions: python -m examples.magika.run."""

from __future__ import annotations

from examples.demo import Example, Sets, main
from examples.magika.dataset import FeatureSpec, build, default_roots
from fixtures.fetch import fetch


def _build() -> Sets:
    return build(FeatureSpec.load(fetch("magika-config")), default_roots())


EXAMPLE = Example(
    name="magika",
    title="magika: 214 file types, on the files of this machine",
    model="magika",
    build=_build,
)

if __name__ == "__main__":
    raise SystemExit(main(EXAMPLE))
