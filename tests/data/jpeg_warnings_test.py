"""What is written to descriptor 2 while JPEGs are decoded: libjpeg's warnings are caught, all else arrives there."""

import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from basisnet_jax.data import jpeg_warnings

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), np.ones((12, 12, 1), np.uint8))


def jpeg(**kwargs):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "JPEG", **kwargs)
    return file.getvalue()


WHOLE, PROGRESSIVE = jpeg(), jpeg(progressive=True)
SCAN = WHOLE.index(b"\xff\xda")  # where its header begins
START = SCAN + 2 + int.from_bytes(WHOLE[SCAN + 2 : SCAN + 4])  # and its data


def with_bytes(at, given):
    return WHOLE[:at] + given + WHOLE[at + len(given) :]


DAMAGED = {
    "bytes before the end": (WHOLE[:-2] + bytes(12) + WHOLE[-2:], "extraneous bytes before marker 0xd9"),
    "bytes before the scan": (WHOLE[:SCAN] + bytes(12) + WHOLE[SCAN:], "12 extraneous bytes before marker 0xda"),
    "an end too early": (WHOLE[: len(WHOLE) * 3 // 4] + WHOLE[-2:], "premature end of data segment"),
    "the same, progressive": (
        PROGRESSIVE[: len(PROGRESSIVE) * 3 // 4] + PROGRESSIVE[-2:],
        "premature end of data segment",
    ),
    "a code that is none": (with_bytes(START + 200, b"\xff\0" * 60), "bad Huffman code"),
    "a range of coefficients": (with_bytes(START - 2, b"\0"), "Invalid SOS parameters for sequential JPEG"),
    "a later JFIF": (with_bytes(11, b"\x09"), "Warning: unknown JFIF revision number 9.01"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_warnings_are_caught(how, capfd):
    content, expected = DAMAGED[how]
    with jpeg_warnings.caught() as warnings:
        image = tf.io.decode_image(content)
    assert image.shape == PIXELS.shape and expected in warnings[0]
    assert capfd.readouterr().err == ""
    with jpeg_warnings.caught() as warnings:
        tf.io.decode_image(WHOLE)
    assert warnings == []


@pytest.mark.parametrize("how", ["ends", "raises", "is interrupted"])
def test_what_others_write_arrives(how, capfd):
    content, _ = DAMAGED["bytes before the end"]
    raised = {"raises": ValueError, "is interrupted": KeyboardInterrupt}.get(how)
    try:
        with jpeg_warnings.caught() as warnings:
            print("before", file=sys.stderr, flush=True)
            tf.io.decode_image(content)
            thread = threading.Thread(target=os.write, args=[2, b"of a thread\n 50%"])  # a bar
            thread.start()
            thread.join()
            tf.io.decode_image(content)
            os.write(2, b" no line's end")
            if raised:
                raise raised
    except (ValueError, KeyboardInterrupt) as error:
        assert type(error) is raised
    assert len(warnings) == 2
    os.write(2, b", after\n")
    assert capfd.readouterr().err == "before\nof a thread\n 50% no line's end, after\n"


def test_threads_take_turns(capfd):
    """Each gets its own warnings, and descriptor 2 is again what it was."""
    (content, _), found = DAMAGED["bytes before the end"], {}

    def decode(name, content):
        with jpeg_warnings.caught() as found[name]:
            tf.io.decode_image(content)
            time.sleep(0.01)

    threads = [threading.Thread(target=decode, args=[i, content if i % 2 else WHOLE]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found[i]) for i in range(8)] == [0, 1] * 4
    os.write(2, b"here\n")
    assert capfd.readouterr().err == "here\n"


CLOSED = """
import os, sys
from basisnet_jax.data import jpeg_warnings
for number in map(int, sys.argv[1:]):
    os.close(number)
with jpeg_warnings.caught() as warnings:
    print("decoded")
"""


@pytest.mark.parametrize("closed", ["2", "0 2"])
def test_stderr_may_be_closed(closed):
    command = [sys.executable, "-c", CLOSED, *closed.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("decoded\n", "")


def test_nobody_may_read_stderr_any_more():
    program = """
import os
from basisnet_jax.data import jpeg_warnings
with jpeg_warnings.caught():
    os.write(2, b"x")
print("decoded")
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writer, text=True, check=True)
    os.close(writer)
    assert done.stdout == "decoded\n"
