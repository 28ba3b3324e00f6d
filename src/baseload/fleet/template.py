"""The fleet file that `baseload init` writes: short, every section commented, and it already simulates."""

from __future__ import annotations

import re

_TEMPLATE = """\
# A fleet of two small sites. Change it, then:
#   baseload check {name}.yaml
#   baseload simulate {name}.yaml --trace azure-conv --out runs/first
# Every key, with its unit and default: docs/reference/fleet.md. Hardware, models and places: `baseload catalog`.
baseload: 1            # version of this format
name: {name}

money:                 # one currency for the whole file
  currency: USD
  wacc: 0.08           # yearly cost of capital

sites:                 # data centres; the catalogue knows a place's coordinates, grid price, carbon and weather
  frankfurt:
    place: frankfurt
    redundancy: N+1    # of the power chain
    grid:              # a phase counts as usable from the day it is energised
      - {{power_mw: 0.06, announced: 2022-03-01, contracted: 2022-10-01, energised: 2023-03-01}}
      - {{power_mw: 0.06, announced: 2023-03-01}}
    contracts:
      - {{power_mw: 0.06, price_per_mwh: {{place: frankfurt, add: 60}}, demand_charge_per_kw_month: 11}}
    racks:
      h100: {{accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2}}
    colocation_per_kw_month: 170
  oslo:
    place: oslo
    grid:
      - {{power_mw: 0.04, energised: 2023-01-01}}
    contracts:
      - {{power_mw: 0.04, price_per_mwh: 75, green_ratio: 1.0}}
    cooling: {{type: direct_to_chip}}
    racks:
      h100: {{accelerator: h100-sxm, accelerators_per_rack: 8}}
    colocation_per_kw_month: 130
    # training:        # a training job as a base load
    #   tuning: {{accelerator: h100-sxm, accelerators: 8}}

models:                # what tenants call, by the name they use
  chat: {{catalog: llama-3.1-8b}}

deployments:           # which model runs on what, and where
  chat:
    model: chat
    accelerator: h100-sxm
    precision: fp8
    tp: 1              # accelerators of a replica that split each layer
    sites:
      frankfurt: {{min: 2, max: 16}}
      oslo: {{min: 1, max: 8}}

regions:               # where users are
  germany: {{place: frankfurt}}
  nordics: {{place: stockholm}}

tenants:               # who asks, what they were promised, and what they pay per million tokens
  office:
    share: 60          # of the requests
    residency: [EU]    # their data may sit in these countries or blocs only
    slo: {{ttft_ms: 1500, tpot_ms: 50}}
    price: {{input_per_mtok: 0.12, cached_per_mtok: 0.04, output_per_mtok: 0.40}}
  public:
    share: 40
    price: {{input_per_mtok: 0.06, output_per_mtok: 0.20}}
    priority: 8        # first to wait when power or capacity is short (0 last)

demand:                # or `trace:`, a file or azure-conv, azure-code
  generator: {{kind: diurnal, requests_per_s: 40, duration_s: 600, lengths_from: azure-conv}}
  start: 2023-06-15    # day and hour decide weather, prices, carbon, and what is in service
  start_hour_utc: 12

policy:                # rules by name; docs/reference/policies.md lists them
  route: least_outstanding
  admit: always
  scale: target_utilisation
  target_utilisation: 0.25   # of max_num_seqs in flight, from which on more replicas start

failures:              # 0 turns a kind off
  server_mtbf_h: 6300
"""


def template(name: str = "my-fleet") -> str:
    """Return a commented fleet file of that name; what a name may not hold becomes a dash.

    >>> template("demo").splitlines()[5]
    'name: demo'
    """
    allowed = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64]
    return _TEMPLATE.format(name=allowed or "my-fleet")
