# docker build --target=cpu -t medgan .
# docker build --target=cuda -t medgan:cuda .
# For older NVIDIA drivers: --build-arg=CUDA=cuda12. docs/container.md has more.
FROM python:3.12-slim AS installed
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/medgan
ENV PATH=/opt/medgan/bin:$PATH
WORKDIR /src
COPY requirements.txt .
RUN pip install --requirement requirements.txt
COPY . .
# hadolint ignore=DL3013
RUN pip install '.[dicom]'

# CUDA and cuDNN come from PyPI, for the release of JAX that is installed; the host needs the driver alone.
FROM installed AS installed-cuda
ARG CUDA=cuda13
# hadolint ignore=DL3013
RUN pip install "jax[${CUDA}]"

FROM python:3.12-slim AS bare
# Caches lie in the home folder: so the volume keeps them, and any --user can write them.
ENV PATH=/opt/medgan/bin:$PATH HOME=/runs
RUN useradd --uid=1000 --home-dir=/runs medgan && install --directory --owner=medgan /data /runs
USER 1000
WORKDIR /runs
VOLUME ["/data", "/runs"]
ENTRYPOINT ["medgan"]
CMD ["--help"]

FROM bare AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=installed-cuda /opt/medgan /opt/medgan

FROM bare AS cpu
COPY --from=installed /opt/medgan /opt/medgan
