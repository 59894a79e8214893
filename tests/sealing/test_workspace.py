"""Sealed workspaces: what comes back, and all that does not."""

import base64
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile

from pathlib import Path

import msgspec
import pytest
import zstandard

from hypothesis import given, settings
from hypothesis import strategies as st

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from given import A_KEY
from launcher.errors import SealBroken
from launcher.sealing import workspace
from launcher.sealing.keys import PoolKey
from launcher.sealing.workspace import Label, OpenedWorkspace, SealedFile, seal


DATA = Path(__file__).parents[1] / "data" / "sealed"
OTHER = PoolKey.make()
LABEL = Label(
    run="01RUN",
    stack="testing-spacelift",
    phase="apply",
    commit="7d629c6c3f3b6da07e28a87727f0586e577d98c1",
    image_digest="sha256:" + "a" * 64,
    policy_receipt="b" * 64,
)
PLAN = hashlib.sha256(b"the plan").digest()
FULL = workspace.CHUNK + 16  # bytes of a chunk on the disk


def sealed(content, *, label=LABEL, key=A_KEY, plan=PLAN, masks=()):
    file = io.BytesIO()
    pieces = [content[at : at + 100_000] for at in range(0, len(content), 100_000)]
    seal(pieces, file, label=label, plan=lambda: plan, key=key, masks=masks)
    return file.getvalue()


def opened(data, key=A_KEY):
    found = OpenedWorkspace(io.BytesIO(data), key)
    return found, b"".join(found.archive())


def refused(data, key=A_KEY, sentence=None):
    with pytest.raises(SealBroken, match=sentence) as caught:
        opened(data, key)
    assert str(caught.value).startswith("the stored workspace ")
    return str(caught.value)


# Four chunks, and not compressible.
CONTENT = os.urandom(3 * workspace.CHUNK + 5000)
SEALED = sealed(CONTENT)
LENGTH = int.from_bytes(SEALED[44:48], "big")
SIGNED = 48 + LENGTH
START = SIGNED + 2 + A_KEY.rsa.key_size // 8
CHUNKS = [SEALED[at : at + FULL] for at in range(START, len(SEALED), FULL)]
HEAD = SEALED[:START]
PARTS = {
    "magic": range(0, 4),
    "count": range(4, 12),
    "plan": range(12, 44),
    "length": range(44, 48),
    "description": range(48, SIGNED),
    "signature length": range(SIGNED, SIGNED + 2),
    "signature": range(SIGNED + 2, START),
    "first chunk": range(START, START + FULL),
    "second chunk": range(START + FULL, START + 2 * FULL),
    "its tag": range(START + 2 * FULL - 16, START + 2 * FULL),
    "last chunk": range(START + 3 * FULL, len(SEALED)),
    "last tag": range(len(SEALED) - 16, len(SEALED)),
}


# --- what comes back


def test_as_many_masks_come_back_as_a_job_may_add():
    """The most that a job may have masked at run time fits into the header."""
    masks = tuple(b"%04d" % number + b"x" * 61 for number in range(1000))
    found, content = opened(sealed(b"content", masks=masks))
    assert (masks, b"content") == (found.masks(), content)


def test_masks_are_for_their_run_only():
    """The box with the masks of one run does not open as another one's."""
    found, _ = opened(sealed(b"content", masks=(b"secret",)))
    found.label = msgspec.structs.replace(found.label, run="01OTHER")
    with pytest.raises(SealBroken):
        found.masks()


@pytest.mark.parametrize(
    "size",
    [0, 1, 100, workspace.CHUNK, workspace.CHUNK + 1, 2 * workspace.CHUNK + 7],
)
def test_what_was_sealed_comes_back(size):
    """Every byte, the label and the plan's sum come back, however often it is read."""
    content = os.urandom(size)
    found, first = opened(sealed(content))
    assert (content, LABEL, PLAN) == (first, as_label(found.label), found.plan)
    assert content == b"".join(found.archive())


def as_label(found):
    return Label(**{name: getattr(found, name) for name in Label.__struct_fields__})


def test_nothing_of_the_content_shows():
    """What the control plane stores holds nothing of the workspace in plain text."""
    secret = b"hunter2-of-the-workspace" * 10
    one, two = sealed(secret), sealed(secret)
    assert one[START:] != two[START:]
    for data in (one, two):
        assert secret[:24] not in data
        assert PLAN in data  # only of the plan there is a sum


def test_the_header_says_whose_it_is():
    """Whoever looks into a stored file can tell the run without a key."""
    said = json.loads(SEALED[48:SIGNED])
    assert ("01RUN", A_KEY.public.fingerprint) == (said["run"], said["key"])


def test_it_is_compressed():
    """What repeats itself takes little room."""
    assert len(sealed(bytes(20 << 20))) < 20_000


def test_it_is_read_in_pieces():
    """No piece is large, however well it was compressed."""
    found = OpenedWorkspace(io.BytesIO(sealed(bytes(50 << 20))), A_KEY)
    pieces = [len(piece) for piece in found.archive()]
    assert 50 << 20 == sum(pieces)
    assert max(pieces) <= 1 << 20


def test_a_file_is_read_from_anywhere():
    """What is sent in parts adds up to the file whose sum is told."""
    content = os.urandom(10_000)
    file = SealedFile(io.BytesIO(content))
    assert (10_000, hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    assert content[7:19] == file.read(7, 12)
    assert content[9_990:] == file.read(9_990, 100)
    assert b"" == file.read(10_000, 100)


@pytest.mark.processes
def test_memory_does_not_grow_with_the_workspace():
    """Sealing and opening hundreds of megabytes takes a bounded amount of memory."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.workspaces", "400"],
        cwd=DATA.parents[2],
        capture_output=True,
        check=True,
    )
    assert max(json.loads(done.stdout)) < 64


# --- what does not


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_is_noticed(part, where):
    """A bit that is flipped, in whatever part of the file, makes it useless."""
    places = PARTS[part]
    place = {"first": 0, "middle": len(places) // 2, "last": -1}[where]
    for bit in (0, 7):
        data = bytearray(SEALED)
        data[places[place]] ^= 1 << bit
        refused(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8 * START - 1))
def test_any_flipped_bit_of_a_header_is_noticed(place):
    """Every bit of the header counts."""
    data = bytearray(SEALED)
    data[place // 8] ^= 1 << place % 8
    refused(bytes(data))


@pytest.mark.parametrize(
    "size",
    sorted(
        {
            edge + step
            for edge in (
                *(each[at] for each in PARTS.values() for at in (0, -1)),
                *range(START, len(SEALED), FULL),
                len(SEALED),
            )
            for step in (-1, 0, 1)
            if 0 <= edge + step < len(SEALED)
        }
    ),
)
def test_truncation_is_noticed(size):
    """A file that ends early, wherever, is not one that ends."""
    refused(SEALED[:size])


@pytest.mark.parametrize("size", [0, 3, 20, 47, 100, SIGNED + 1, START - 1, START + 15])
def test_what_is_cut_short_is_said_to_be(size):
    """A header that is not all there is said to be cut short, not damaged."""
    sentence = "is not a sealed one" if size < 4 else "is cut short"
    refused(SEALED[:size], sentence=sentence)


def test_a_missing_end_is_said_to_be():
    """So is a file of which whole chunks are missing."""
    refused(SEALED[: START + 2 * FULL], sentence="is cut short")


@pytest.mark.parametrize("more", [b"x", bytes(16), CHUNKS[0], CHUNKS[3]])
def test_nothing_can_be_added(more):
    """A file that goes on after its end is refused."""
    refused(SEALED + more, sentence="is damaged")


@pytest.mark.parametrize(
    "order", [o for o in itertools.permutations(range(4)) if o != (0, 1, 2, 3)]
)
def test_chunks_keep_their_order(order):
    """Chunks that changed places are noticed."""
    refused(HEAD + b"".join(CHUNKS[number] for number in order))


@pytest.mark.parametrize("number", range(4))
def test_no_chunk_is_missing_and_none_is_there_twice(number):
    """A chunk that is dropped, doubled or put in another's place is noticed."""
    before, after = CHUNKS[:number], CHUNKS[number + 1 :]
    refused(HEAD + b"".join(before + after))
    refused(HEAD + b"".join([*before, CHUNKS[number], CHUNKS[number], *after]))
    for other in {0, 1, 2, 3} - {number}:
        refused(HEAD + b"".join([*before, CHUNKS[other], *after]))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 1 << 63, (1 << 64) - 1])
def test_the_number_of_chunks_is_signed(count):
    """Nobody can say that there are fewer chunks, or more."""
    data = SEALED[:4] + count.to_bytes(8, "big") + SEALED[12:]
    refused(data, sentence="is not what this pool has signed")


def test_chunks_of_another_workspace_do_not_fit():
    """The header of one and the chunks of another do not make a third."""
    other = sealed(CONTENT, plan=hashlib.sha256(b"an older plan").digest())
    start = 50 + int.from_bytes(other[44:48], "big") + A_KEY.rsa.key_size // 8
    refused(HEAD + other[start:], sentence="is damaged")


@pytest.mark.parametrize("field", Label.__struct_fields__)
def test_every_field_is_signed(field):
    """Nobody can change what a workspace belongs to, lengths and all."""
    said = json.loads(SEALED[48:SIGNED])
    said[field] = "forged"
    text = json.dumps(said).encode()
    data = SEALED[:44] + len(text).to_bytes(4, "big") + text + SEALED[SIGNED:]
    refused(data, sentence="is not what this pool has signed")


def test_another_pools_workspace_is_told_apart():
    """Who has another key is told so, in both directions."""
    sentence = "sealed by another worker pool, or before the pool's key was replaced"
    refused(SEALED, OTHER, sentence)
    refused(sealed(b"x", key=OTHER), A_KEY, sentence)


def forged(content, *, description=None, sign=OTHER.sign, final=True, secret=None):
    """What somebody can make who knows no more of the pool than its public key."""
    secret = secret or os.urandom(32)
    said = json.loads(SEALED[48:SIGNED])
    said["wrapped_key"] = base64.b64encode(A_KEY.public.wrap(secret)).decode()
    text = description or json.dumps(said).encode()
    header = b"SLW1" + (1).to_bytes(8, "big") + PLAN
    header += len(text).to_bytes(4, "big") + text
    signature = sign(header)
    nonce = bytes(11) + bytes([final])
    chunk = AESGCM(secret).encrypt(nonce, content, hashlib.sha256(text).digest())
    return header + len(signature).to_bytes(2, "big") + signature + chunk


def test_the_public_key_is_not_enough():
    """Encrypting to the pool is easy; it is the signature that is trusted."""
    frame = zstandard.compress(b"evil")
    refused(forged(frame), sentence="is not what this pool has signed")
    assert b"evil" == opened(forged(frame, sign=A_KEY.sign))[1]


def test_the_final_flag_counts():
    """A last chunk that was not made as the last one is none."""
    frame = zstandard.compress(b"x")
    refused(forged(frame, sign=A_KEY.sign, final=False), sentence="is damaged")


def wide(content):
    """A frame that takes 128 MiB of memory to read."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize("frame", [b"no frame", wide(b"x")], ids=["garbage", "wide"])
def test_what_is_inside_is_bounded(frame):
    """Not even what the pool itself has sealed may take memory without end."""
    refused(forged(frame, sign=A_KEY.sign), sentence="is damaged")


@given(st.binary(max_size=3000))
def test_garbage_is_no_workspace(garbage):
    """Whatever is served instead is refused, and nothing else happens."""
    for data in (garbage, b"SLW1" + garbage, SEALED[:48] + garbage):
        with pytest.raises(SealBroken):
            opened(data)


# --- the vectors of docs/protocol.md


def test_the_published_workspace_opens():
    """The file that is published with its key holds what is published beside it."""
    found, content = opened((DATA / "workspace.sealed").read_bytes())
    assert (DATA / "workspace.tar").read_bytes() == content
    said = json.loads((DATA / "workspace.json").read_text())
    assert said == {
        **{name: getattr(found.label, name) for name in Label.__struct_fields__},
        "plan_sha256": found.plan.hex(),
    }


def test_the_published_sum_of_the_plan_is_that_of_its_files():
    """It is what `sha256sum` prints about the plan's files, hashed once more."""
    found, content = opened((DATA / "workspace.sealed").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        lines = [
            f"{hashlib.sha256(tar.extractfile(member).read()).hexdigest()}  "
            f"{member.name.removeprefix('mnt/workspace/')}\n"
            for member in tar
            if member.name.endswith(("/spacelift.plan", "/spacelift.plan.json"))
        ]
    assert 2 == len(lines)
    assert hashlib.sha256("".join(lines).encode()).digest() == found.plan
