"""What to do next: the rules that the twin and the gateway both ask, chosen by name from the tables below.

Adding one is a function, a row here, a test, and a docs line. A row's number is what the compiled kernel switches on.
"""

from __future__ import annotations

ROUTE = {
    "round_robin": 0,
    "least_outstanding": 1,
    "least_wait": 2,
    "prefix_affine": 3,
    "cheapest": 4,
    "greenest": 5,
}
ROUTE_CUSTOM = 6  # an operator's own rule, as the next three
ADMIT_CUSTOM = 4
SCALE_CUSTOM = 2
CAP_CUSTOM = 4
ADMIT = {"always": 0, "within_slo": 1, "within_budget": 2, "within_slo_and_budget": 3}
SCALE = {"fixed": 0, "target_utilisation": 1}
CAP = {"none": 0, "slow": 1, "shed": 2, "by_priority": 3}

# Cap rules under which accelerators hold a power cap each, so that the site's limit is a hard one.
CAPS_EACH_REPLICA = frozenset({"slow", "by_priority"})

# Route rules that read what is scraped from engines; the twin scrapes only for these.
READS_SCRAPE = frozenset({2, 4, 5, ROUTE_CUSTOM})

KINDS = {"route": ROUTE, "admit": ADMIT, "scale": SCALE, "cap": CAP}
