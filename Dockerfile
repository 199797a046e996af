# Serves the run or model that is mounted at /model: docs/serving.md has the commands.
FROM python:3.11-slim

# Where PyTorch's builds for CPUs are; the ordinary ones bring gigabytes of CUDA libraries.
ARG CPU_INDEX
ARG EXTRAS=serve
RUN test -n "$CPU_INDEX" || { echo "CPU_INDEX must be given, see docs/serving.md" >&2; exit 1; }

WORKDIR /app
RUN pip install --no-cache-dir --index-url "$CPU_INDEX" torch==2.13.0
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY textgen_env textgen_env
COPY agents agents
COPY experiments experiments
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

RUN useradd --uid 10001 --create-home textgen
USER textgen
WORKDIR /home/textgen
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# In the form of a list, so that the server is the process that a stop is sent to.
ENTRYPOINT ["textgen", "serve", "/model", "--host", "0.0.0.0"]
