"""The tracker that writes event files of TensorBoard."""

# The package is optional, and may be missing where types are checked.
# pyright: reportMissingImports=false

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from .extras import naming_extra
from .json_lines import png
from .ledger import Ledger


@final
class TensorBoardTracker:
    """A tracker that writes event files, for `tensorboard --logdir DIRECTORY`.

    It needs the extra `tensorboard`, and neither TensorFlow nor PyTorch. Values are in
    the files as soon as they are recorded.
    """

    def __init__(self, directory: str | os.PathLike):
        """**Arguments:**

        - `directory`: the directory of the event files, one for each run. A tracker in
            the directory of an earlier one continues it, and leaves out steps that are
            already recorded.

        **Raises:** `ModuleNotFoundError` without TensorBoard.
        """
        with naming_extra("tensorboard"):
            from tensorboard.compat.proto import (
                event_pb2,
                summary_pb2,
                tensor_pb2,
                types_pb2,
            )
            from tensorboard.plugins.text import metadata
            from tensorboard.summary.writer import event_file_writer
        self._event, self._proto = event_pb2.Event, summary_pb2.Summary
        self._tensor, self._string = tensor_pb2.TensorProto, types_pb2.DT_STRING
        self._writer_class, self._text = event_file_writer.EventFileWriter, metadata
        self._directory = Path(directory)
        self._open: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        # Markdown shows an indented block as it is.
        lines = json.dumps(values, indent=1).splitlines()
        text = "\n".join("    " + line for line in lines)
        value = self._proto.Value(
            tag="config",
            metadata=self._text.create_summary_metadata("config", ""),
            tensor=self._tensor(dtype=self._string, string_val=[text.encode()]),
        )
        self._write(0, [value])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        _, ledger = self._opened
        values = ledger.missing(step, values)
        made = [self._proto.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._write(step, made)
        ledger.add(step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        _, ledger = self._opened
        values = ledger.missing(step, values)
        made = []
        for name, picture in values.items():
            height, width, channels = picture.shape
            image = self._proto.Image(
                height=height,
                width=width,
                colorspace=channels,
                encoded_image_string=png(picture),
            )
            made.append(self._proto.Value(tag=name, image=image))
        self._write(step, made)
        ledger.add(step, values)

    def __enter__(self) -> "TensorBoardTracker":
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            writer, _ = self._open
            writer.close()
            self._open = None

    @property
    def _opened(self) -> Any:
        if self._open is None:
            ledger = Ledger(self._directory)
            self._open = self._writer_class(str(self._directory)), ledger
        return self._open

    def _write(self, step: int, values: list[Any]) -> None:
        if not values:
            return
        writer, _ = self._opened
        summary = self._proto(value=values)
        writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()
