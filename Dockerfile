# docker build -t lit_sft .                                    for a CPU
# docker build -t lit_sft --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .     for CUDA
#
# The host brings the driver; wheels of CUDA bring its libraries. docs/install.md says how to run it. A further stage
# begins with `FROM training AS NAME` and is built with `--target NAME`; the last stage is the default.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS training
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Further extras of pyproject.toml: serve, export or serve,export.
ARG EXTRAS=
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/lit_sft
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch alone, so that a change of the code does not bring it again. The environment is where make looks for it.
RUN python -m venv .venv && .venv/bin/pip install --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple "torch==${TORCH}"
ENV PATH=/opt/lit_sft/.venv/bin:$PATH
COPY . .
RUN pip install --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}" && touch .venv/installed
CMD ["python", "-m", "lit_sft", "--help"]
