"""The same generated examples on every machine, and no deadline: a busy core is no bug.

`pytest --hypothesis-profile deep` looks for more, and differently each time.
"""

from hypothesis import HealthCheck, settings

_ANYWHERE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.register_profile("steady", _ANYWHERE, derandomize=True)
settings.register_profile("deep", _ANYWHERE, max_examples=3000)
settings.load_profile("steady")
