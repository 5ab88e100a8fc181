# docker build --target cpu  -t ghosttune:cpu .
# docker build --target cuda -t ghosttune:cuda .      torch's CUDA wheel brings CUDA; the machine brings the driver
# docker run --rm -v "$PWD":/home/tuner/runs ghosttune:cpu quickstart
# docker run --rm --gpus all -v "$PWD":/home/tuner/runs ghosttune:cuda train runs/run.yaml

FROM python:3.11-slim-bookworm AS source
RUN useradd --create-home tuner
WORKDIR /opt/ghosttune
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

FROM source AS cpu
RUN pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install --constraint constraints.txt ".[serve,export]"
USER tuner
WORKDIR /home/tuner
ENTRYPOINT ["ghosttune"]
CMD ["--help"]

FROM source AS cuda
RUN pip install --constraint constraints.txt torch==2.13.0 \
    && pip install --constraint constraints.txt ".[serve,export,quant]"
USER tuner
WORKDIR /home/tuner
ENTRYPOINT ["ghosttune"]
CMD ["--help"]
