"""What happened and what it means: KPIs from a Fleet and its Records; text, JSON and HTML; comparisons."""
