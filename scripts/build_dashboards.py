"""Write the Grafana dashboards in deploy/dashboards from the panels in scripts/dashboards.

`--check` fails when they are not current.

A dashboard is a list of rows, a row a list of panels; queries use the metrics of docs/metrics.md and Grafana's own
intervals.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from scripts.dashboards.money import MONEY
from scripts.dashboards.operations import OPERATIONS
from scripts.dashboards.panels import Dashboard, Panel

FOLDER = Path(__file__).parent.parent / "deploy" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
SCHEMA = 39


def panel_json(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """One panel as Grafana has it."""
    steps: list[dict[str, Any]] = [{"color": "green" if panel.red_above is not None else "text", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    custom: dict[str, Any] = {}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.kind == "timeseries":
        custom = {
            "drawStyle": "bars" if panel.bars else "line",
            "fillOpacity": 60 if panel.bars else 10,
            "lineWidth": 1 if panel.bars else 2,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if panel.red_above is not None else "off"},
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "bargauge":
        options |= {"displayMode": "basic", "orientation": "horizontal"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0 if "argin" not in panel.title else None,
                "custom": custom,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "range": True,
            }
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """One dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    number = top = 0
    for title, row in dashboard.rows:
        number += 1
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
            }
        )
        top += 1
        width, height = WIDTH // len(row), 4 if all(panel.kind == "stat" for panel in row) else HEIGHT
        for index, panel in enumerate(row):
            number += 1
            panels.append(panel_json(panel, number, {"x": index * width, "y": top, "w": width, "h": height}))
        top += height
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["tollkeeper"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": dashboard.span, "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "includeAll": False,
                }
            ]
        },
        "panels": panels,
    }


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is not current")
    check = parser.parse_args().check
    stale = []
    for name, dashboard in (("money.json", MONEY), ("operations.json", OPERATIONS)):
        path, text = FOLDER / name, json.dumps(dashboard_json(dashboard), indent=2) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
    if check and stale:
        print(
            f"deploy/dashboards: not current: {', '.join(stale)}; run python -m scripts.build_dashboards",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
