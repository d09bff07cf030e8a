# The server's image: the wheel on top of its pinned dependencies, run by a user without rights.
#
#   docker build -t tocom-serve .                                  PyPI's CUDA build of PyTorch
#   docker build -t tocom-serve --build-arg TORCH_INDEX=<url> .    another build, e.g. CPU wheels
#
# Needs BuildKit (the default since Docker 23; DOCKER_BUILDKIT=1 before).

ARG BASE=python:3.11-slim

# --- The wheel, and the list of what it needs ----------------------------------------------------
FROM ${BASE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN ["python", "-c", "import pathlib, tomllib; \
project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
pathlib.Path('/requirements.txt').write_text('\\n'.join(project['dependencies']) + '\\n')"]
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /dist .

# --- The image ------------------------------------------------------------------------------------
FROM ${BASE}
LABEL org.opencontainers.image.title="ToCom Serve" \
      org.opencontainers.image.description="Image classification whose speed can be dialled while it runs" \
      org.opencontainers.image.licenses="Apache-2.0"

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# The large layer: rebuilt only when a dependency moves, not when the code does. With TORCH_INDEX
# given, its build of PyTorch ("2.15.0+cpu") sorts above PyPI's of the same version and is taken.
ARG TORCH_INDEX=""
COPY constraints.txt /opt/tocom/
COPY --from=wheel /requirements.txt /opt/tocom/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
      --constraint /opt/tocom/constraints.txt --requirement /opt/tocom/requirements.txt

RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /cache tocom \
    && install --directory --owner tocom --group tocom /cache

# The root file system can be read-only; models fetched from the hub go to /cache.
ENV HF_HOME=/cache/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOCOM_HOST=0.0.0.0

# As a number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; \
urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('TOCOM_PORT', '8000') + '/readyz', timeout=4)"]
ENTRYPOINT ["tocom"]
CMD ["serve"]
