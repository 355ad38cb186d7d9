"""Panels of the dashboards, as scripts/build_dashboards.py writes them for Grafana."""
