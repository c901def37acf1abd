# pantomim on a CPU:  docker build -t pantomim . ; docker run --rm -v "$PWD:/work" pantomim pretrain mae --data photos/ --out runs/first
# On a GPU:           docker build --build-arg TORCH_INDEX=https://pypi.org/simple -t pantomim . ; docker run --gpus all ...
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
COPY . /src
RUN pip install --no-cache-dir "/src[demo,heic]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["pantomim"]
