"""Our experts as a model of lm-eval, the evaluation harness; no other room imports it.

lm-eval finds models in a registry that only its own modules fill, so its command is started here:

    python -m elm_jax.lm_eval --model elm --model_args run=DIR,router=roe --tasks NAMES …
    python -m elm_jax.lm_eval --model_args run=DIR --method base --method roe --tasks NAMES …

From Python, importing `elm_jax.lm_eval.model` is enough for `lm_eval.simple_evaluate(model="elm", …)`.
"""
