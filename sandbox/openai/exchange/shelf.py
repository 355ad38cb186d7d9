"""Objects that requests stored under ids of their own: conversations with items, files, vector stores, chats."""

import base64
import time
from typing import Any, Final, TypeVar

import msgspec

from sandbox.openai.exchange.batch_job import BatchJob
from sandbox.openai.requests.errors import ApiError, error_object

Thing = TypeVar("Thing")
_CHARS_A_TOKEN, _SHORT_WORD = 4, 2
_KEEP: Final = 20_000


class Conversation(msgspec.Struct):
    """A conversation; `shown` is its object."""

    shown: dict[str, Any]
    items: list[dict[str, Any]]


class File(msgspec.Struct, frozen=True):
    """An uploaded file; `shown` is its object."""

    shown: dict[str, Any]
    content_type: str
    data: bytes


class PartedUpload(msgspec.Struct):
    """An upload in parts; `shown` is its object, `expires_s` what its file is told to live, 0 for ever."""

    shown: dict[str, Any]
    mime_type: str
    expires_s: int
    parts: dict[str, bytes] = {}


class StoreFile(msgspec.Struct):
    """A file in a vector store. Bytes that it takes there, and when they will have been read (Unix seconds)."""

    shown: dict[str, Any]
    filename: str
    text: str
    usage_bytes: int
    ready_at: float

    def object(self) -> dict[str, Any]:
        """Return its object as it is now."""
        if self.shown["status"] == "in_progress" and time.time() >= self.ready_at:
            self.shown |= {"status": "completed", "usage_bytes": self.usage_bytes}
        return self.shown


class VectorStore(msgspec.Struct):
    """A vector store; `shown` are the members that requests set. `batches`: ids of files by batch."""

    shown: dict[str, Any]
    files: dict[str, StoreFile]
    batches: dict[str, dict[str, Any]]
    touched_at: float

    def object(self) -> dict[str, Any]:
        """Return its object as it is now."""
        files = [file.object() for file in self.files.values()]
        counts = counted(files)
        found = {
            **self.shown,
            "usage_bytes": sum(file["usage_bytes"] for file in files),
            "file_counts": counts,
            "status": "in_progress" if counts["in_progress"] else "completed",
            "last_active_at": int(self.touched_at),
        }
        if found.get("expires_after"):
            found["expires_at"] = int(self.touched_at) + found["expires_after"]["days"] * 86_400
        return found

    def search(self, query: str) -> list[dict[str, Any]]:
        """Return the chunks that hold a word of the query, those with most of its words first."""
        wanted = {word for word in query.lower().split() if len(word) > _SHORT_WORD}
        found: list[dict[str, Any]] = []
        for name, file in self.files.items():
            shown = file.object()
            if shown["status"] != "completed":
                continue
            size = shown["chunking_strategy"]["static"]["max_chunk_size_tokens"] * _CHARS_A_TOKEN
            for start in range(0, len(file.text), size):
                text = file.text[start : start + size]
                score = sum(word in text.lower() for word in wanted) / max(1, len(wanted))
                if score:
                    row = {"file_id": name, "filename": file.filename, "score": score}
                    row["attributes"] = shown["attributes"]
                    found.append({**row, "content": [{"type": "text", "text": text}]})
        self.touched_at = time.time()
        return sorted(found, key=lambda row: -float(row["score"]))


def counted(files: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many files of a vector store have which status."""
    counts = dict.fromkeys(("in_progress", "completed", "failed", "cancelled"), 0)
    for file in files:
        counts[file["status"]] += 1
    return counts | {"total": len(files)}


class Sound(msgspec.Struct, frozen=True):
    """Speech of an earlier answer: its tokens, those of its transcript, Unix second at which it is gone."""

    tokens: int
    transcript_tokens: int
    gone_at: int


class Shelf:
    """Objects by id. Every `get` raises ApiError 404 for an id that is not there."""

    def __init__(self) -> None:
        """Start empty."""
        self.conversations: dict[str, Conversation] = {}
        self.items: dict[str, dict[str, Any]] = {}
        self.files: dict[str, File] = {}
        self.chats: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, BatchJob] = {}
        self.uploads: dict[str, PartedUpload] = {}
        self.stores: dict[str, VectorStore] = {}
        self.sounds: dict[str, Sound] = {}

    def conversation(self, name: str) -> Conversation:
        """Return the conversation of that id."""
        return _found(self.conversations, name, "Conversation")

    def file(self, name: str) -> File:
        """Return the file of that id."""
        return _found(self.files, name, "File")

    def chat(self, name: str) -> dict[str, Any]:
        """Return the stored chat of that id."""
        return _found(self.chats, name, "Chat completion")

    def batch(self, name: str) -> BatchJob:
        """Return the batch of that id."""
        return _found(self.batches, name, "Batch")

    def upload(self, name: str) -> PartedUpload:
        """Return the upload of that id."""
        return _found(self.uploads, name, "Upload")

    def store(self, name: str) -> VectorStore:
        """Return the vector store of that id."""
        return _found(self.stores, name, "Vector store")

    def sound(self, name: str) -> Sound:
        """Return the speech of that id, while it is there."""
        sound = _found(self.sounds, name, "Audio")
        if sound.gone_at <= time.time():
            raise ApiError(404, error_object(f"Audio with id '{name}' has expired.", "invalid_request_error"))
        return sound

    def put_file(self, name: str, filename: str, purpose: str, data: bytes) -> None:
        """Add a file that the API itself made."""
        shown = {
            "id": name,
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        self.files[name] = File(shown, "application/jsonl", data)

    def put_items(self, items: list[dict[str, Any]]) -> None:
        """Keep items that requests can refer to; the oldest go when there are too many."""
        for item in items:
            if isinstance(item.get("id"), str):
                self.items[item["id"]] = item
        while len(self.items) > _KEEP:
            del self.items[next(iter(self.items))]

    def with_items(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return items with those that they refer to in place of the references. Raises ApiError 404."""
        return [
            _found(self.items, str(item.get("id")), "Item") if item.get("type") == "item_reference" else item
            for item in items
        ]

    def with_files(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return items with the bytes of the files that they name in place of the names."""
        return [self._opened(item) for item in items]

    def _opened(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._opened(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") in ("input_file", "input_image") and isinstance(value.get("file_id"), str):
            file = self.file(value["file_id"])
            url = f"data:{file.content_type};base64,{base64.b64encode(file.data).decode()}"
            rest = {name: inner for name, inner in value.items() if name != "file_id"}
            if value["type"] == "input_image":
                return {**rest, "image_url": url}
            return {**rest, "filename": file.shown["filename"], "file_data": url}
        return {name: self._opened(inner) for name, inner in value.items()}


def _found(objects: dict[str, Thing], name: str, what: str) -> Thing:
    if name not in objects:
        raise ApiError(404, error_object(f"{what} with id '{name}' not found.", "invalid_request_error"))
    return objects[name]
