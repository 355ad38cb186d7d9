"""Redis that is more than one server: a cluster of three masters and their replicas, a primary that Sentinels watch.

Both with passwords, of servers and of Sentinels; of either program that there is a wheel of, Redis and Valkey.
"""

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis as redis_py

from billing.money.buckets import BUCKETS, SLOTS, slot_of_bucket
from tests.support.programs import found
from tests.support.servers import RedisServer, free_port, only_if_marked, wait_until

PASSWORD, SENTINEL_PASSWORD = "p@ss/word", "the sentinels'"
NODE_TIMEOUT_MS = 800
MASTERS = 3
BUS = 10_000
"""A node's port among nodes, beyond its own."""
KEYS_AT_ONCE = 10
SERVICE = "balances"
PROGRAMS = ("redis-server", "valkey-server")


def port_with_bus() -> int:
    """A port that is free together with its bus."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + BUS))
            return port


def client_of(server: RedisServer, password: str = PASSWORD) -> "redis_py.Redis[bytes]":
    """Past the product; closed by who asks."""
    return redis_py.Redis(port=server.port, password=password, socket_timeout=5, protocol=2)


def ask(server: RedisServer, *command: Any) -> Any:
    """A server's answer to one command, as it is."""
    with client_of(server) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


@dataclass
class RedisCluster:
    """Six nodes: the first three begin as masters, each with one of the others as its replica. Without `copies`, three."""

    folder: Path
    program: str = "redis-server"
    copies: int = 1
    """Replicas of each master."""
    nodes: list[RedisServer] = field(default_factory=list)

    def start(self) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
        options += ("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0")
        options += ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        # one master away does not stop the others: as whoever has several wants it
        options += ("--cluster-require-full-coverage", "no")
        for number in range(MASTERS * (1 + self.copies)):
            folder, port = self.folder / f"node{number}", port_with_bus()
            self.nodes.append(RedisServer(folder, "everysec", port, options, self.program))
            self.nodes[-1].start()
        first = self.nodes[0]
        bounds = [SLOTS * number // MASTERS for number in range(MASTERS + 1)]
        for number, node in enumerate(self.nodes):
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < MASTERS:
                ask(node, "CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
            if number:
                ask(node, "CLUSTER", "MEET", "127.0.0.1", first.port)
        wait_until(
            lambda: all(self._known_by(node) == len(self.nodes) for node in self.nodes), 15, "all nodes have met"
        )
        for number, node in enumerate(self.nodes[MASTERS:]):
            ask(node, "CLUSTER", "REPLICATE", self.name_of(self.nodes[number % MASTERS]))
        self.wait_whole()

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    @property
    def url(self) -> str:
        """Of two of its nodes: the others are found."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[1:3])
        return f"redis+cluster://:{quote(PASSWORD, safe='')}@{hosts}/"

    def wait_whole(self) -> None:
        """Wait until every node is there, every slot is served, and every replica follows its master."""
        for node in self.nodes:
            if node.process is None:
                node.start()
        wait_until(self._is_whole, 20, "the cluster is whole")

    def _is_whole(self) -> bool:
        infos = [ask(node, "INFO", "replication").decode() for node in self.nodes]
        replicas = [info for info in infos if "role:slave" in info]
        return (
            len(replicas) == MASTERS * self.copies
            and all("master_link_status:up" in info for info in replicas)
            and all(b"fail" not in ask(node, "CLUSTER", "NODES") for node in self.nodes)
            and all(b"cluster_slots_ok:16384" in ask(node, "CLUSTER", "INFO") for node in self.nodes)
        )

    def clear(self) -> None:
        """Empty it."""
        for node in self.nodes:
            if b"role:master" in ask(node, "INFO", "replication"):
                ask(node, "FLUSHALL")

    def name_of(self, node: RedisServer) -> str:
        name: str = ask(node, "CLUSTER", "MYID").decode()
        return name

    def master_of(self, bucket: int, asked: RedisServer | None = None) -> RedisServer:
        """The node that serves a bucket's slot."""
        slot = slot_of_bucket(bucket)
        living = [asked] if asked else [node for node in self.nodes if node.process is not None]
        for node in living:
            for first, last, (_, port, *_), *_ in ask(node, "CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return next(one for one in self.nodes if one.port == port)
        raise ConnectionError(f"nobody serves slot {slot}")

    def replica_of(self, master: RedisServer) -> RedisServer:
        for node in self.nodes:
            if node.process is not None and f"master_port:{master.port}\r" in ask(node, "INFO", "replication").decode():
                return node
        raise AssertionError("the master has no replica")

    def another_master(self, node: RedisServer) -> RedisServer:
        return next(one for one in map(self.master_of, range(BUCKETS)) if one is not node)

    def begin_move(self, bucket: int) -> "Move":
        """Put a bucket's slot on its way to another master; its keys are where they were."""
        source = self.master_of(bucket)
        target = self.another_master(source)
        move = Move(self, slot_of_bucket(bucket), source, target)
        ask(target, "CLUSTER", "SETSLOT", move.slot, "IMPORTING", self.name_of(source))
        ask(source, "CLUSTER", "SETSLOT", move.slot, "MIGRATING", self.name_of(target))
        return move

    def move(self, bucket: int) -> None:
        """Move a bucket to another master, key by key, as `redis-cli --cluster reshard` does."""
        self.begin_move(bucket).end()

    def move_at_once(self, bucket: int) -> None:
        """Move a bucket to another master as a whole, as Valkey 9 can."""
        source = self.master_of(bucket)
        target, slot = self.another_master(source), slot_of_bucket(bucket)
        ask(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.name_of(target))
        wait_until(lambda: self.master_of(bucket, source) is target, 10, "the slot has moved")

    def _known_by(self, node: RedisServer) -> int:
        found = re.search(rb"cluster_known_nodes:(\d+)", ask(node, "CLUSTER", "INFO"))
        return int(found[1]) if found else 0


@dataclass
class Move:
    """A slot on its way."""

    cluster: RedisCluster
    slot: int
    source: RedisServer
    target: RedisServer

    def step(self) -> bool:
        """Bring some keys over; False when none is left."""
        keys = ask(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, KEYS_AT_ONCE)
        if keys:
            place = ("127.0.0.1", self.target.port, "", 0, 5_000)
            ask(self.source, "MIGRATE", *place, "AUTH", PASSWORD, "KEYS", *keys)
        return bool(keys)

    def end(self) -> None:
        """Bring the rest over, and say whose the slot is."""
        while self.step():
            pass
        name = self.cluster.name_of(self.target)
        others = [node for node in self.cluster.nodes if node not in (self.source, self.target)]
        masters = [node for node in others if b"role:master" in ask(node, "INFO", "replication")]
        for node in (self.target, self.source, *masters):
            ask(node, "CLUSTER", "SETSLOT", self.slot, "NODE", name)


@dataclass
class SentinelGroup:
    """A primary, a replica, and three Sentinels of which two must agree."""

    folder: Path
    program: str = "redis-server"
    servers: list[RedisServer] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    sentinels: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        secret = quote(SENTINEL_PASSWORD, safe="")
        return f"redis+sentinel://:{quote(PASSWORD, safe='')}@{hosts}/{SERVICE}/0?sentinel_password={secret}"

    def start(self) -> None:
        only_if_marked()
        options = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0")
        primary = RedisServer(self.folder / "server0", "everysec", extra=options, program=self.program)
        follows = (*options, "--replicaof", "127.0.0.1", str(primary.port))
        replica = RedisServer(self.folder / "server1", "everysec", extra=follows, program=self.program)
        self.servers += [primary, replica]
        for server in self.servers:
            server.start()
        for _ in range(3):
            self.start_sentinel(primary.port)
        wait_until(lambda: self.primary() is primary and self.follows(replica), 15, "the replica follows")
        wait_until(self._know_each_other, 15, "the Sentinels know each other and the replica")

    def stop(self) -> None:
        for process in self.sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            server.kill()

    def primary(self) -> RedisServer:
        """The one that the Sentinels name."""
        _, port = self._ask_sentinel("get-master-addr-by-name", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def other(self, server: RedisServer) -> RedisServer:
        return next(one for one in self.servers if one is not server)

    def follows(self, server: RedisServer) -> bool:
        return b"master_link_status:up" in ask(server, "INFO", "replication")

    def wait_whole(self) -> None:
        """Wait until the other follows the primary, and the Sentinels know."""
        for server in self.servers:
            if server.process is None:
                server.start()
        wait_until(lambda: self.follows(self.other(self.primary())), 15, "the replica follows again")
        wait_until(self._know_each_other, 15, "the Sentinels know of the replica")

    def start_sentinel(self, primary: int) -> None:
        """Start one more, that watches the server at this port."""
        port, conf = free_port(), self.folder / f"sentinel{len(self.ports)}.conf"
        conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f'requirepass "{SENTINEL_PASSWORD}"\nsentinel sentinel-pass "{SENTINEL_PASSWORD}"\n'
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\nsentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 2000\n"
        )
        command = [found(self.program), str(conf), "--sentinel"]
        self.sentinels.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.ports.append(port)
        wait_until(lambda: self._ask_sentinel("master", SERVICE, number=self.ports.index(port)), 10, "it answers")

    def _ask_sentinel(self, *words: str, number: int = 0) -> Any:
        with redis_py.Redis(
            port=self.ports[number], password=SENTINEL_PASSWORD, socket_timeout=5, protocol=2
        ) as client:
            client.response_callbacks.clear()
            return client.execute_command("SENTINEL", *words)

    def _know_each_other(self) -> bool:
        for number in range(3):
            reply = self._ask_sentinel("master", SERVICE, number=number)
            known = dict(zip(reply[::2], reply[1::2], strict=True))
            replicas = self._ask_sentinel("replicas", SERVICE, number=number)
            if known[b"num-other-sentinels"] != b"2" or known[b"flags"] != b"master" or len(replicas) != 1:
                return False
            if b"slave" not in replicas[0] and b"replica" not in replicas[0]:
                return False
        return True


@dataclass
class OneSentinel:
    """A Sentinel that names a server, and may name another one later; of no `host` it knows no service."""

    host: str
    named: int = 6_379
    epoch: int = 1
    seconds: float = 0
    fields: tuple[str, ...] = ()
    """Said in the place of the server."""
    port: int = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(65_536)
            await asyncio.sleep(self.seconds)
            fields = self.fields or ("ip", self.host, "port", str(self.named), "config-epoch", str(self.epoch))
            known = b"".join(b"$%d\r\n%s\r\n" % (len(one), one.encode()) for one in fields)
            unknown = b"-ERR No such master with that name\r\n"
            writer.write(b"*%d\r\n%s" % (len(fields), known) if self.host else unknown)
            await writer.drain()
            writer.close()


def cut_replication(master: RedisServer) -> None:
    """Let no replica follow any more: what is written from now on is on the master alone."""
    ask(master, "ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
    ask(master, "CLIENT", "KILL", "TYPE", "replica")


@contextlib.contextmanager
def started(group: RedisCluster | SentinelGroup) -> Iterator[None]:
    """Run the servers of a group."""
    try:
        group.start()
        yield
    finally:
        group.stop()
