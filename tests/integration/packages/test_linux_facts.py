"""The shipped package `linux.facts`, run for real and compared with what Python reads itself."""

from __future__ import annotations

import codecs
import fcntl
import ipaddress
import json
import os
import platform
import random
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.packages import shipped
from tests.integration.packages.operation_runner import Runner

FACTS = shipped() / "linux.facts"

# Each byte for itself.
codecs.register_error(
    "question-marks", lambda error: ("?", error.start + 1) if isinstance(error, UnicodeDecodeError) else ("", 0)
)


def awk(program: str, text: str | bytes) -> str:
    """What the program says, which is valid UTF-8."""
    return subprocess.run(
        ["awk", "-f", FACTS / "json.awk", "-f", FACTS / program],
        input=text if isinstance(text, bytes) else text.encode(),
        # As gather.sh has it.
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout.decode()


def memory(field: str) -> int:
    (kibibytes,) = re.findall(rf"^{field}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(kibibytes) * 1024


def ipv4_address(interface: str) -> str | None:
    """The first address of the interface, as the kernel tells it to programs (SIOCGIFADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", interface.encode()))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def ipv6_addresses(interface: str) -> Iterator[str]:
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else []:
        address, _, prefix, _, _, name = line.split()
        if name == interface:
            yield f"{ipaddress.IPv6Address(bytes.fromhex(address))}/{int(prefix, 16)}"


def test_the_facts_are_those_of_this_machine(run: Runner) -> None:
    ended = run("linux.facts", "gather")
    assert (ended.exit_code, ended.stderr) == (0, "")
    facts = ended.outputs
    release = platform.freedesktop_os_release()
    assert facts["os_name"] == release["NAME"]
    assert facts["os_version"] == release.get("VERSION_ID", "unknown")
    assert facts["kernel"] == platform.release()
    assert facts["architecture"] == platform.machine()
    assert facts["hostname"] == socket.gethostname()
    assert int(facts["cpu_count"]) == os.cpu_count()
    assert facts["cpu_model"] in Path("/proc/cpuinfo").read_text() + "unknown"
    assert int(facts["memory_total_bytes"]) == memory("MemTotal")
    assert int(facts["memory_available_bytes"]) == pytest.approx(memory("MemAvailable"), rel=0.3)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert uptime - 60 < int(facts["uptime_seconds"]) <= uptime


def test_the_disks_are_those_of_this_machine(run: Runner) -> None:
    disks = json.loads(run("linux.facts", "gather").outputs["disks"])
    mounts = {line.split()[1]: line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    assert disks
    for disk in disks:
        status = os.statvfs(disk["mount"])
        assert mounts[disk["mount"].replace(" ", r"\040")] == disk["type"]
        assert disk["size_bytes"] == status.f_blocks * status.f_frsize
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        assert disk["used_bytes"] == pytest.approx(used, abs=disk["size_bytes"] * 0.05)
        assert 0 <= disk["available_bytes"] <= disk["size_bytes"]


def test_the_interfaces_are_those_of_this_machine(run: Runner) -> None:
    found = {entry["name"]: entry for entry in json.loads(run("linux.facts", "gather").outputs["network"])}
    assert {name for _, name in socket.if_nameindex()} == found.keys() - {""}
    for name in found.keys() - {""}:
        assert found[name]["mac"] == Path(f"/sys/class/net/{name}/address").read_text().strip()
        assert found[name]["state"] == Path(f"/sys/class/net/{name}/operstate").read_text().strip()
        assert set(ipv6_addresses(name)) <= set(found[name]["addresses"])
        address = ipv4_address(name)
        assert address is None or address in {text.split("/")[0] for text in found[name]["addresses"]}


def test_the_facts_are_shown_and_progress_is_told(run: Runner) -> None:
    ended = run("linux.facts", "gather")
    for name, value in ended.outputs.items():
        if name not in ("memory_available_bytes", "uptime_seconds"):
            assert value in ended.stdout
    percents = [int(line.split(" ", 1)[0]) for line in ended.progress]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)


def test_a_fact_that_cannot_be_read_fails_the_job() -> None:
    # A machine without awk.
    ended = subprocess.run(
        ["/bin/sh", "-c", 'awk() { return 1; }; . "$0"', FACTS / "gather.sh"],
        env={"PATH": os.environ["PATH"], "SIS_OUTPUT": "/dev/null", "SIS_PROGRESS": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "cannot read cpu_model\n"


def test_mounts_are_read_from_the_kernel_s_table() -> None:
    table = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
28 27 8:1 / /mnt/a\040disk\134\043 rw - xfs /dev/sda1 rw
29 27 8:2 / /mnt/line\012break rw - xfs /dev/sda2 rw
30 27 0:40 / /mnt/remote rw - nfs4 server:/export rw
31 27 0:41 / /run rw - tmpfs tmpfs rw
32 27 8:3 / /data rw - fuseblk /dev/sdb1 rw
33 27 0:42 / /mnt/ssh rw - fuse.sshfs host: rw
"""
    assert awk("mounts.awk", table.lstrip()).splitlines() == [
        "0:21\tproc\tproc\t/proc",
        "254:0\text4\t/dev/vda\t/",
        "8:1\txfs\t/dev/sda1\t/mnt/a disk\\#",
        "8:3\tfuseblk\t/dev/sdb1\t/data",
    ]


def test_names_that_are_no_utf_8_are_shown_with_question_marks() -> None:
    source = random.Random(1)
    names = [
        "/caf\xe9".encode("latin-1"),
        "/é€\ud7ff\ue000\U0010ffff".encode(),
        # Cut off, overlong, halves of a pair, and beyond the last character.
        b"/\xe2\x82\xac\xe2\x82/\xc3",
        b"/\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf\xed\xa0\x80\xf4\x90\x80\x80\xf5\xff",
        # Whatever begins a character, and what is just good enough to go on, or just not.
        *(b"/" + bytes([first, second]) + rest for first in range(128, 256) for second in (0x7E, 0x80, 0x8F, 0x90, 0x9F,
          0xA0, 0xBF, 0xC0) for rest in (b"", b"\x80", b"\x80\xbf")),
        *(b"/" + bytes(source.choice(range(128, 256)) for _ in range(20)) for _ in range(200)),
    ]  # fmt: skip
    for start in range(0, len(names), 200):
        some = names[start : start + 200]
        text = b"".join(b"%d\text4\t/dev/x\t%b\t1 1 1 1\n" % each for each in enumerate(some))
        found = [disk["mount"] for disk in json.loads(awk("disks.awk", text))]
        assert found == [name.decode(errors="question-marks") for name in some]
    assert json.loads(awk("network.awk", b"interface a\xff up 0\n"))[0]["name"] == "a?"


def test_disks_are_listed_once_and_without_empty_file_systems() -> None:
    lines = (
        '254:0\text4\t/dev/vda\t/a "b" \\c\t4096 1000000000000 400000000000 300000000000\n'
        "254:0\text4\t/dev/vda\t/bind\t4096 1000 400 300\n"
        "0:21\tproc\tproc\t/proc\t4096 0 0 0\n"
    )
    assert json.loads(awk("disks.awk", lines)) == [
        {
            "mount": '/a "b" \\c',
            "device": "/dev/vda",
            "type": "ext4",
            "size_bytes": 4096 * 10**12,
            "used_bytes": 4096 * 6 * 10**11,
            "available_bytes": 4096 * 3 * 10**11,
        }
    ]


def test_lists_stay_below_the_limit_of_an_output() -> None:
    disks = "".join(f"0:{number}\text4\t/dev/x\t/{'m' * 200}{number}\t1 1 1 1\n" for number in range(1_000))
    interfaces = "".join(f"interface veth{number} up 00:00:00:00:00:00\n" for number in range(5_000))
    for text in (awk("disks.awk", disks), awk("network.awk", interfaces)):
        assert len(text.encode()) < 64 * 1024
        assert len(json.loads(text)) > 100


def test_ipv4_addresses_are_joined_with_their_interfaces() -> None:
    def kernel(address: str) -> str:
        return f"{struct.unpack('<I', socket.inet_aton(address))[0]:08X}"

    routes = [
        ("eth0", "0.0.0.0", "192.0.2.1", "0.0.0.0"),
        ("eth0", "192.0.2.0", "0.0.0.0", "255.255.255.0"),
        ("eth1", "10.0.0.0", "0.0.0.0", "255.240.0.0"),
        ("eth2", "10.1.2.0", "0.0.0.0", "255.255.254.0"),
    ]
    lines = ["interface lo unknown 00:00:00:00:00:00", "interface eth0 up 02:00:00:00:00:01"]
    lines += [
        f"route {name} {kernel(network)} {kernel(gateway)} 0001 0 0 0 {kernel(mask)} 0 0 0"
        for name, network, gateway, mask in routes
    ]
    for address in ("127.0.0.1", "192.0.2.7", "10.15.255.254", "10.1.3.9", "203.0.113.5", "192.0.2.7"):
        lines += [f"fib_trie            |-- {address}", "fib_trie               /32 host LOCAL"]
    found = {entry["name"]: entry["addresses"] for entry in json.loads(awk("network.awk", "\n".join(lines)))}
    assert found == {
        "lo": ["127.0.0.1/8"],
        "eth0": ["192.0.2.7/24"],
        "eth1": ["10.15.255.254/12"],
        "eth2": ["10.1.3.9/23"],
        "": ["203.0.113.5/32"],
    }


def test_ipv6_addresses_have_their_usual_form() -> None:
    source = random.Random(1)
    addresses = [
        ipaddress.IPv6Address(
            b"".join(source.choice((b"\0\0", b"\0\0", b"\0\1", source.randbytes(2))) for _ in range(8))
        )
        for _ in range(2_000)
    ]
    addresses += [ipaddress.IPv6Address(text) for text in ("::", "::1", "1::", "fe80::1", "1:0:0:2::3")]
    addresses = [address for address in addresses if address.ipv4_mapped is None]
    for start in range(0, len(addresses), 500):
        some = addresses[start : start + 500]
        lines = "".join(f"if_inet6 {address.packed.hex()} 01 40 00 80 eth0\n" for address in some)
        assert json.loads(awk("network.awk", lines)) == [
            {"name": "eth0", "mac": "", "state": "", "addresses": [f"{address}/64" for address in some]}
        ]
