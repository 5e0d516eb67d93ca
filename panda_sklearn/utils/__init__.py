"""The boundary to numpy, scikit-learn and networks.

Nothing here is public.
"""
