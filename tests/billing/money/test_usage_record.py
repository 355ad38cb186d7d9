"""The record of a request, and what is left of it where a part was booked before."""

import msgspec

from billing.money.usage_record import UsageRecord, encode_record, rest_of

