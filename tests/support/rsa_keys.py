"""RSA keys for tests, each made when it is first asked for: it takes 50 ms."""

from functools import cache

from cryptography.hazmat.primitives.asymmetric import rsa


@cache
def rsa_key(whose: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)
