"""Money: prices, holds, balances and the ledger. Nothing here knows HTTP."""
