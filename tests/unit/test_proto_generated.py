"""The generated messages are what the .proto files say."""

from pathlib import Path

from tests.beds.generate_proto import GENERATED, generate, modules


def test_generated_code_matches_the_proto_files(tmp_path: Path) -> None:
    generate(tmp_path)
    assert modules(tmp_path) == modules(GENERATED)
