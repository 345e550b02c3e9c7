"""The long table of numbers: what 04_evaluate measured of every run, one row each, and what is asked of it."""

from lib.table.claiming import claims, claims_table, read_claims
from lib.table.comparing import by_seed, compare, holm, results, summary
from lib.table.loading import COLUMNS, MAIN, at, compared, constants, joined, label, load, rows
