"""What machines cost at AWS, in US dollars an hour."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection
from typing import Any

PRICING_REGION = "us-east-1"
"""One of the few regions that answer questions about prices, for all regions."""


def on_demand(pricing: Any, instance: str, region: str) -> float | None:
    """Price of a Linux instance on demand; `None` if there is no such offer."""
    wanted = {
        "instanceType": instance,
        "regionCode": region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    found = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters, FormatVersion="aws_v1")
    prices = [price for offer in found["PriceList"] for price in _hourly(json.loads(offer))]
    return min(prices, default=None)


def spot(ec2: Any, instance: str, zones: Collection[str], now: datetime.datetime) -> float | None:
    """Lowest spot price at this moment in any of the zones (none = all); `None` if nothing is offered."""
    found = ec2.describe_spot_price_history(InstanceTypes=[instance], ProductDescriptions=["Linux/UNIX"], StartTime=now)
    prices = [
        float(entry["SpotPrice"])
        for entry in found["SpotPriceHistory"]
        if not zones or entry["AvailabilityZone"] in zones
    ]
    return min(prices, default=None)


def _hourly(offer: dict[str, Any]) -> list[float]:
    """Positive prices of an offer by the hour; reserved capacity is listed at 0."""
    dimensions = [
        dimension
        for term in offer.get("terms", {}).get("OnDemand", {}).values()
        for dimension in term.get("priceDimensions", {}).values()
    ]
    prices = [
        float(d["pricePerUnit"]["USD"]) for d in dimensions if d.get("unit") == "Hrs" and "USD" in d["pricePerUnit"]
    ]
    return [price for price in prices if price > 0]
