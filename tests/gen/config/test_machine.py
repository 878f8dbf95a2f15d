"""What a machine says of itself."""

from pathlib import Path

from gen.config.machine import cache_folder, compiler_obstacle, processor


def test_the_processor_is_named_by_more_than_its_maker():
    about = processor()
    assert set(about) == {"vendor", "family", "model", "stepping", "flags"}
    assert isinstance(about["flags"], list)


def test_the_cache_follows_the_user_s_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("engines") == tmp_path / "gen" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder("engines") == Path.home() / ".cache" / "gen" / "engines"


def test_without_a_compiler_there_is_a_reason(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compiler_obstacle() == "compiling for a CPU needs a C++ compiler, and there is none"
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    assert compiler_obstacle() is None
