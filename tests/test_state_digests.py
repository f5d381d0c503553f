"""Digests of files and tensors: which kind one is, what it is of, and what others know the base by."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from state.digests import Digests, Kinds, is_of_bytes, is_of_file, kind_of
from state.tensors import ModelFolder
from tests.state_world import content, folder_digests, make_store, old_digests, write_model

DATA = b"zorp" * 1000
BLAKE3, SHA256 = f"blake3:{blake3(DATA).hexdigest()}", hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(("digest", "is_its_own"), [
    (BLAKE3, True), (SHA256, True), (f"blake3:{SHA256}", False), (BLAKE3.removeprefix("blake3:"), False),
    (BLAKE3[:-1], False), ("", False), ("blake3:", False)])  # fmt: skip
def test_a_digest_is_of_its_own_bytes_in_its_own_kind_only(tmp_path: Path, digest: str, is_its_own: bool) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert is_of_file(tmp_path / "file", digest) == is_its_own
    assert is_of_bytes(np.frombuffer(DATA, "u1"), digest) == is_its_own


def test_kinds_are_those_that_there_are_and_blake3_where_there_are_none(tmp_path: Path) -> None:
    folder = ModelFolder.open(write_model(tmp_path / "base"))
    assert Kinds.of(old_digests(folder)) == Kinds("sha256", "sha256")
    assert Kinds.of(folder_digests(folder)) == Kinds.of(Digests()) == Kinds("blake3", "blake3")
    assert Kinds.of(Digests(old_digests(folder).files, folder_digests(folder).tensors)) == Kinds("sha256", "blake3")
    assert kind_of({}) == "blake3"


def test_a_base_is_known_to_others_by_the_sha256_of_its_files(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        record = store.version_record(0)
        expected = {name: hashlib.sha256(data).hexdigest() for name, data in content(store.model_path(0)).items()}
        assert record["files"] == folder_digests(ModelFolder.open(store.model_path(0))).files
        assert Digests.of_record(record).sha256 == record["sha256"] == expected
        older = {"files": expected, "tensors": record["tensors"]}
        assert Digests.of_record(older).sha256 == expected


def test_a_record_has_sha256_where_the_files_have_another_digest_and_it_was_taken() -> None:
    blake3, sha256 = {"a": BLAKE3}, {"a": SHA256}
    for digests, has_it in (
        (Digests(blake3, {}, sha256), True),
        (Digests(blake3, {}), False),
        (Digests(sha256, {}), False),
        (Digests(sha256, {}, sha256), False),
    ):
        assert ("sha256" in digests.to_record()) == has_it
        known = digests if digests.files == blake3 else Digests(sha256, {}, sha256)
        assert Digests.of_record(digests.to_record()) == known
