import jax
import pytest
from script_runs import importable_scripts


@pytest.fixture
def keep_compiled(monkeypatch, tmp_path):
    with importable_scripts():
        from _compilation import keep_compiled

        directory = jax.config.jax_compilation_cache_dir
        size = jax.config.jax_compilation_cache_max_size
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        yield keep_compiled
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_compilation_cache_max_size", size)


def test_programs_are_kept_below_the_users_cache(keep_compiled, tmp_path):
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    directory = jax.config.jax_compilation_cache_dir
    assert directory.startswith(str(tmp_path / "eqmdm" / "compiled"))


def test_directory_that_the_user_has_chosen_stays(keep_compiled, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
