# elm_jax on a CPU: docker build -t elm_jax . && docker run --rm -v "$PWD":/work elm_jax quickstart
# On an accelerator: --build-arg EXTRAS=cuda (or tpu).
FROM python:3.11-slim
ARG EXTRAS=hub
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"
WORKDIR /work
ENTRYPOINT ["elm"]
CMD ["--help"]
