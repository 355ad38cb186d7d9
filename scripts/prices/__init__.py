"""Steps of scripts/build_prices.py: read the source, complete its rates, describe the models, check the result."""
