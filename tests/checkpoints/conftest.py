"""A hub with one repository, for tests that must not reach the real one."""

import fnmatch
import shutil

import pytest


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A hub with one repository: the folder of its files, that of the cache, and what was asked."""
    remote = tmp_path / "remote"
    cache = tmp_path / "cache"
    cache.mkdir()
    asked = []

    def snapshot_download(repo, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        for path in remote.rglob("*.*"):
            name = str(path.relative_to(remote))
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return remote, cache, asked
