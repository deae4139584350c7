"""What libjpeg says of a JPEG that is damaged, but not so much that it could not be decoded.

Within TensorFlow libjpeg writes it to descriptor 2, without the file's name, and nothing else tells that it did. So
whoever decodes a file reads what is written there meanwhile.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

# All of jerror.h. A line of theirs may stand behind another thread's unfinished one.
WARNING = re.compile(
    rb"(?:Corrupt JPEG data: .*|Premature end of JPEG file|Invalid SOS parameters for sequential JPEG"
    rb"|Inconsistent progression sequence for component .*|Unknown Adobe color transform code .*"
    rb"|Warning: unknown JFIF revision number .*|Application transferred too many scanlines)\n"
)
# Where decoding fails there is an exception as well, which the caller tells together with the file's name.
FAILURE = re.compile(
    rb"(?:Improper call to JPEG library in state .*|E\d{4} .* jpeg_mem\.cc:.*"
    rb"|WARNING: All log messages before absl::InitializeLog\(\) .*)\n"
)
_one = threading.Lock()  # a process has one descriptor 2


@contextlib.contextmanager
def caught() -> Iterator[list[str]]:
    """libjpeg's warnings of the block: a list that is filled when it ends.

    Whatever else any thread writes to descriptor 2 is kept, and written on at the end. If the process crashes before,
    it is lost: a block should only decode.
    """
    warnings: list[str] = []
    with _one, scratch() as inside:
        try:
            outside = os.dup(2)
        except OSError:  # closed: nobody sees what libjpeg writes
            yield warnings
            return
        try:
            os.dup2(inside.fileno(), 2)
            yield warnings
        finally:
            os.dup2(outside, 2)
            os.close(outside)
            inside.seek(0)
            text = inside.read()
            warnings += [line.decode().rstrip() for line in WARNING.findall(text)]
            with contextlib.suppress(OSError):  # a closed pipe, which does not stop libjpeg either
                os.write(2, FAILURE.sub(b"", WARNING.sub(b"", text)))


def scratch() -> BinaryIO:
    """A file without a name. Linux has it in memory: there no disk can be full or read-only."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("stderr"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
