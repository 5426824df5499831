"""The report: tables (csv, md), the claims as text, and figures."""
