"""A real Prometheus and its promtool, from Debian's package; an exporter of what the product's own metrics say."""

import http.server
import re
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from proxy.observability.metrics import Metrics
from tests.support import web
from tests.support.programs import found
from tests.support.servers import ROOT, free_port, wait_until

RULES = ROOT / "deploy" / "alerts" / "tollkeeper.yml"
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
FASTER = 300


def promtool(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run([found("promtool"), *arguments], input=text, capture_output=True, text=True, check=False)


def hurried(rules: str) -> str:
    """The same rules with every duration a three-hundredth of what it is, so that a test need not wait for days."""

    def shorter(seconds: float, least: float) -> str:
        return f"{max(least, seconds / FASTER):.0f}s"

    def window(match: re.Match[str]) -> str:
        return f"{match[1]}{shorter(int(match[2]) * SECONDS[match[3]], 3)}{match[4]}"

    rules = re.sub(r"(\[|offset )(\d+)([smhd])(\]|\b)", window, rules)
    return re.sub(
        r"(for: )(\d+)([smhd])(\b)", lambda match: f"for: {shorter(int(match[2]) * SECONDS[match[3]], 1)}", rules
    )


@dataclass
class Prometheus:
    """Prometheus on a port of its own, scraping and judging twice a second."""

    folder: Path
    targets: list[str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Prometheus":
        self.folder.mkdir(parents=True)
        (self.folder / "rules.yml").write_text(hurried(RULES.read_text()))
        targets = ", ".join(f'"{target}"' for target in self.targets)
        (self.folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n"
            "rule_files: [rules.yml]\n"
            f"scrape_configs:\n  - job_name: tollkeeper\n    static_configs: [{{targets: [{targets}]}}]\n"
        )
        command = [
            found("prometheus"),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(self.folder / "log").open("wb"))
        wait_until(lambda: web.get(f"{self.url}/-/ready").status_code == 200, 20, "Prometheus is ready")
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now. Fails when it is none."""
        answer = web.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = web.get(f"{self.url}/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Exporter:
    """Serves the product's metrics as a process of it would, in whatever state a test puts them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        registry, metrics = self.registry, self.metrics

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                metrics.publish()
                body = generate_latest(registry)
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.target = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
