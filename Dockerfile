# CPU:    docker build -t ldm .
# NVIDIA: docker build -t ldm --build-arg TORCH_INDEX= .      (PyPI's torch for Linux is a CUDA build)
# Then:   docker run --rm -v "$PWD:/work" ldm generate "horizontal stacked glyph" -o glyphs.png
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE HOME=/tmp
COPY . /src
RUN pip install -c /src/constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch \
    && pip install -c /src/constraints.txt "/src[onnx,lora,track,formats]" \
    && rm -rf /src
RUN useradd --uid 1000 ldm
USER ldm
WORKDIR /work
ENTRYPOINT ["ldm"]
CMD ["--help"]
