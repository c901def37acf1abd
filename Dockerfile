# docker build -t pantomim . ; docker run --rm -v "$PWD:/work" pantomim pretrain mae --data photos/ --out runs/first
# pip takes PyTorch's CUDA build, which runs on a CPU, too; for a smaller image name PyTorch's index of CPU builds by
# --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL
COPY . /src
RUN pip install --no-cache-dir "/src[demo,heic]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["pantomim"]
