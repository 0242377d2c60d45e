import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from chatgym.errors import Corrupted, Unavailable
from chatgym.storage.cache import Cache, default_path

WRITER = """
import sys
from pathlib import Path
from chatgym.storage.cache import Cache
name, cache = sys.argv[2], Cache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for i in range(200):
    cache.put(f"{name}/{i}", f"{name} said {i}")
    cache.put("both", name)
    assert cache.get(f"{name}/{i}") == f"{name} said {i}"
"""


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path / "made" / "words.sqlite")
    yield cache
    cache.close()


def test_what_was_put_is_got_also_by_the_next_process(cache):
    assert cache.get("greet") is None
    cache.put("greet", "Good morning — what’s wrong?\n")
    cache.put("bye", "Bye")
    cache.put("bye", "Good bye")
    cache.close()
    assert cache.get("greet") == "Good morning — what’s wrong?\n"
    assert Cache(cache.path).get("bye") == "Good bye"


def test_words_are_kept_where_the_models_are(tmp_path, monkeypatch):
    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path))
    assert default_path() == tmp_path / "words.sqlite"


def test_two_processes_write_at_once_and_nothing_is_lost(cache):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(cache.path), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("ann", "bob")
    ]  # fmt: skip
    assert [writer.stdout.readline() for writer in writers] == ["ready\n", "ready\n"]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors
    for name in ("ann", "bob"):
        assert [cache.get(f"{name}/{i}") for i in range(200)] == [f"{name} said {i}" for i in range(200)]
    assert cache.get("both") in ("ann", "bob")


def test_threads_share_a_cache(cache):
    def write(name):
        for i in range(50):
            cache.put(f"{name}/{i}", name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cache.get(f"{name}/{i}") == name for name in "abcd" for i in range(50))


fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system can't fork")


def in_child(action):
    """Fork, let the child do `action`, and return whether it came through."""
    child = os.fork()
    if child == 0:
        os._exit(0 if action() else 1)
    return os.waitpid(child, 0)[1] == 0


@fork
def test_a_forked_child_and_its_parent_both_go_on(cache):
    cache.put("before", "1")

    def child():
        cache.put("child", "2")
        return cache.get("before") == "1"

    assert in_child(child)
    cache.put("after", "3")
    assert [cache.get(key) for key in ("before", "child", "after")] == ["1", "2", "3"]


@fork
def test_a_forked_child_uses_a_connection_of_its_own(cache):
    cache.put("before", "1")
    parents = cache._connection
    assert in_child(lambda: cache.get("before") == "1" and cache._connection is not parents)
    assert in_child(lambda: cache.close() is None and parents.execute("SELECT 1").fetchone() == (1,))


@fork
def test_a_child_forked_while_a_thread_writes_does_not_wait_for_that_thread(cache):
    """The lock that the thread holds is copied, and nobody in the child would ever release it."""
    with cache._lock:

        def child():
            worker = threading.Thread(target=cache.put, args=("child", "2"), daemon=True)
            worker.start()
            worker.join(20)
            return not worker.is_alive()

        assert in_child(child)
    assert cache.get("child") == "2"


@pytest.mark.parametrize("damage", ["head", "middle", "empty"])
def test_a_damaged_file_is_reported_with_the_remedy(tmp_path, damage):
    path = tmp_path / "words.sqlite"
    cache = Cache(path)
    for i in range(500):
        cache.put(f"key {i}", "words " * 20)
    cache.close()
    content = bytearray(path.read_bytes())
    if damage == "head":
        content[:100] = b"not a database" * 7 + b"!!"
    elif damage == "middle":
        content[4096:] = b"\xff" * (len(content) - 4096)
    else:
        content = b"x" * 10
    path.write_bytes(content)
    with pytest.raises(Corrupted, match="delete the file: its words are made again"):
        Cache(path).get("key 250")
    path.unlink()
    assert Cache(path).get("key 250") is None


def test_a_full_disk_is_reported_with_the_remedy_and_what_was_there_stays(small_disk):
    cache = Cache(small_disk / "words.sqlite")

    def fill():
        for i in range(1000):
            cache.put(f"key {i}", "words " * 200)

    with pytest.raises(Unavailable, match="check the rights and the space there, or set CHATGYM_CACHE"):
        fill()
    assert cache.get("key 0") == "words " * 200
    cache.close()


def test_a_folder_that_can_not_be_written_to_is_reported_with_the_remedy(small_disk):
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    if subprocess.run(remount, capture_output=True).returncode != 0:
        pytest.skip("a file system can't be made read-only here")
    with pytest.raises(Unavailable, match="set CHATGYM_CACHE to another folder"):
        Cache(small_disk / "words.sqlite")


def test_a_folder_that_is_a_file_is_reported_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="set CHATGYM_CACHE to another folder"):
        Cache(tmp_path / "file" / "words.sqlite")


def test_a_word_that_could_not_be_stored_at_first_is_replaced_by_one_that_is(tmp_path):
    (tmp_path / "file").write_text("")
    words = Cache(tmp_path / "file" / "words.sqlite", lasting=False)
    with pytest.warns(UserWarning, match="held in memory"):
        words.put("k", "first")
    assert words.get("k") == "first"
    words.close()
    (tmp_path / "file").unlink()
    words.put("k", "second")
    assert words.get("k") == "second"
    words.close()
