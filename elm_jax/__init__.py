"""elm_jax: train one small expert per task on a frozen T5, retrieve, merge and score them."""
