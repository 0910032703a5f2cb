"""Everything that a ClientApp receives and sends, written down byte for byte."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from tests.e2e.copies import copy_app

VARIABLE = "RECORDED_MESSAGES"

MOD = f"""

# Appended by a test: writes down every message.
import os, time
from pathlib import Path
from flwr.common.serde import recorddict_to_proto


def _record(message, context, call_next):
    reply = call_next(message, context)
    folder = Path(os.environ["{VARIABLE}"])
    for way, each in (("received", message), ("sent", reply)):
        content = recorddict_to_proto(each.content).SerializeToString()
        name = f"{{time.time_ns()}} {{context.run_id}} {{message.metadata.message_type}} {{way}}"
        (folder / name).write_bytes(content)
    return reply


app = ClientApp(client_fn=client_fn, mods=[_record])
"""


@dataclass(frozen=True)
class Recorded:
    """One message: ``kind`` is train or evaluate, ``way`` received or sent."""

    kind: str
    way: str
    content: bytes

    @property
    def records(self) -> RecordDict:
        """What it says."""
        return recorddict_from_proto(ProtoRecordDict.FromString(self.content))


def recording_app(folder: Path) -> Path:
    """Return a copy of the app that records its clients' messages."""
    copy_app(folder)
    with (folder / "feddtpt_flwr" / "client_app.py").open("a", encoding="utf-8") as file:
        file.write(MOD)
    return folder


def recorded(folder: Path) -> Iterator[Recorded]:
    """Return all messages, in the order in which they were answered."""
    for path in sorted(folder.iterdir()):
        _, _, kind, way = path.name.split()
        yield Recorded(kind, way, path.read_bytes())


def describe(message: Recorded) -> str:
    """Return a Markdown table of all that a message holds."""
    rows = [f"| `{name}` | {_shown(value)} | {size:,} |" for name, value, size in _parts(message)]
    whole = f"| the whole message | | {len(message.content):,} |"
    return "\n".join(["| part | value | bytes |", "|---|---|---|", *rows, whole])


def _parts(message: Recorded) -> Iterator[tuple[str, Any, int]]:
    for record in message.records.values():
        if isinstance(record, ArrayRecord):
            for array in record.values():
                yield "token ids", array.numpy().tolist(), len(array.data)
            continue
        for key, value in record.items():
            name = key.removeprefix("fitres.metrics.")
            yield name, value, len(str(value).encode()) if isinstance(value, str) else 8


def _shown(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
