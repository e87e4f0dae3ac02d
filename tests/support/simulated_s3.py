"""S3 in memory, for simulated processes: each request can be lost, delayed, or answered with an error."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from botocore.exceptions import ClientError, ReadTimeoutError
from pyarrow import fs

from support.simulation import START, Process, World

T = TypeVar("T")
BUCKET = "bucket"
ANSWER_SECONDS = 0.02
# How a write can fail: it is not done, it is done without an answer, or it is done and then repeated by the client.
FAULTS = ("refused", "unanswered", "repeated")


@dataclass(frozen=True)
class Stored:
    """An object; `version` takes the place of its ETag."""

    content: bytes
    version: str
    at: float


@dataclass
class Write:
    """A request that changes an object."""

    process: Process
    name: str
    apply: Callable[[], str]
    fault: str = ""
    is_sent: bool = False
    is_done: bool = False
    result: str = ""
    error: Exception | None = None


class Store:
    """The objects of a bucket by their keys, and all requests that changed them.

    Attributes:
        before_write: called with each write when its process begins it.
        after_write: called with each write when it was carried out.
        faults: what happens to the next writes.
        failing_reads: how many of the next reads fail.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[str, Stored] = {}
        self.writes: list[Write] = []
        self.before_write: Callable[[Write], None] = lambda _: None
        self.after_write: Callable[[Write], None] = lambda _: None
        self.faults: list[str] = []
        self.failing_reads = 0
        self._versions = 0

    def put(self, key: str, content: bytes) -> str:
        self._versions += 1
        self.objects[key] = Stored(content, f'"{self._versions}"', START + self.world.now)
        return self.objects[key].version

    def delete(self, keys: list[str]) -> str:
        for key in keys:
            self.objects.pop(key, None)
        return ""

    def read(self, look: Callable[[], T]) -> T:
        """A request that changes nothing; its answer may be out of date when it arrives.

        Raises:
            TimeoutError: if it fails.
        """
        answer = look()
        self.world.pause(ANSWER_SECONDS)
        if self.failing_reads:
            self.failing_reads -= 1
            raise TimeoutError("no answer")
        return answer

    def write(self, name: str, apply: Callable[[], str]) -> str:
        """A request that changes something: a process may be killed or frozen before it is sent, and on either way.

        Raises:
            TimeoutError: if it fails.
        """
        self.world.require_alive()
        write = Write(self.world.process, name, apply, self.faults.pop(0) if self.faults else "")
        self.before_write(write)
        self.writes.append(write)
        self.world.pause()
        write.is_sent = True
        self.world.pause()
        if not write.is_done:
            self.carry_out(write)
        self.world.pause(ANSWER_SECONDS)
        if write.fault == "repeated":
            write.error = None
            write.result = write.apply()
            self.after_write(write)
        if write.error:
            raise write.error
        if write.fault in ("refused", "unanswered"):
            raise TimeoutError(f"no answer about {name}")
        return write.result

    def carry_out(self, write: Write) -> None:
        write.is_done = True
        if write.fault != "refused":
            try:
                write.result = write.apply()
            except ClientError as error:
                write.error = error
            self.after_write(write)

    def under_way(self) -> list[Write]:
        """Writes of frozen or dead processes that may still arrive."""
        return [
            write for write in self.writes if write.is_sent and not write.is_done and write.process.state != "running"
        ]

    def names(self, folder: str) -> list[str]:
        return sorted(key.removeprefix(f"{folder}/") for key in self.objects if key.startswith(f"{folder}/"))


# A filesystem that is sent to another process finds its storage here.
_stores: WeakValueDictionary[int, Store] = WeakValueDictionary()


class SimulatedS3(fs.S3FileSystem):  # type: ignore[misc]
    """What the program uses of pyarrow's filesystem."""

    def __init__(self, store: Store) -> None:
        super().__init__(region="us-east-1", anonymous=True)
        self.store = store
        _stores[id(store)] = store

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (id(self.store),)

    def get_file_info(self, what: str | fs.FileSelector) -> Any:
        if isinstance(what, str):
            return self.store.read(lambda: self._info(what))
        return self.store.read(lambda: self._list(what.base_dir))

    def _list(self, folder: str) -> list[fs.FileInfo]:
        names = {name.partition("/")[0] for name in self.store.names(folder)} - {""}
        return [self._info(f"{folder}/{name}") for name in names]

    def _info(self, path: str) -> fs.FileInfo:
        if stored := self.store.objects.get(path):
            at = int(stored.at) * 1_000_000_000
            return fs.FileInfo(path, type=fs.FileType.File, size=len(stored.content), mtime_ns=at)
        is_folder = any(key.startswith(f"{path}/") for key in self.store.objects)
        return fs.FileInfo(path, type=fs.FileType.Directory if is_folder else fs.FileType.NotFound)

    def create_dir(self, path: str, recursive: bool = True) -> None:  # noqa: ARG002
        if path != BUCKET:
            self.store.write(path, lambda: self.store.put(f"{path}/", b""))

    def delete_file(self, path: str) -> None:
        self.store.write(path, lambda: self.store.delete([path]))

    def delete_dir(self, path: str) -> None:
        keys = [f"{path}/{name}" for name in self.store.names(path)]
        self.store.write(path, lambda: self.store.delete(keys))

    def open_input_file(self, path: str) -> io.BytesIO:
        if not self.store.read(lambda: path in self.store.objects):
            raise FileNotFoundError(path)
        stored = self.store.read(lambda: self.store.objects.get(path))
        if not stored:
            raise OSError(f"{path} was deleted")
        return io.BytesIO(stored.content)

    def open_output_stream(self, path: str) -> "_Upload":
        return _Upload(self.store, path)


class _Upload(io.BytesIO):
    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            content = self.getvalue()
            self._store.write(self._path, lambda: self._store.put(self._path, content))


def _copy(number: int) -> SimulatedS3:
    return SimulatedS3(_stores[number])


class SimulatedClient:
    """What the program uses of boto3's client: conditional writes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        with _timeouts_of_boto3():
            stored = self._store.read(lambda: self._store.objects.get(f"{Bucket}/{Key}"))
        if not stored:
            raise _error("NoSuchKey")
        return {"Body": io.BytesIO(stored.content), "ETag": stored.version}

    def put_object(self, Bucket: str, Key: str, Body: bytes, **condition: str) -> dict[str, Any]:  # noqa: N803
        path = f"{Bucket}/{Key}"

        def apply() -> str:
            stored = self._store.objects.get(path)
            if "IfNoneMatch" in condition and stored:
                raise _error("PreconditionFailed")
            if "IfMatch" in condition and not stored:
                raise _error("NoSuchKey")
            if "IfMatch" in condition and stored and stored.version != condition["IfMatch"]:
                raise _error("PreconditionFailed")
            return self._store.put(path, Body)

        with _timeouts_of_boto3():
            return {"ETag": self._store.write(path, apply)}


@contextmanager
def _timeouts_of_boto3() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ReadTimeoutError(endpoint_url="s3", error=error) from error


def _error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "PutObject")


def digest(number: int) -> str:
    """Takes the place of random digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]
