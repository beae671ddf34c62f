# The image holds the static binary and the CA certificates, nothing else.
# It runs as nobody; give it a writable /var/lib/murder.
#   docker build -t murder .
#   docker buildx build --platform linux/amd64,linux/arm64 -t registry.example/murder:v1 --push .
#   docker run --network host -v murder:/var/lib/murder murder mirror --seeder http://registry.example:7070
# The compiler runs on the builder's own platform, whatever it builds for.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -trimpath -buildvcs=false -tags=disable_libutp,nosqlite,noboltdb \
      -ldflags "-s -w -X main.version=${VERSION}" -o /murder ./cmd/murder \
 && mkdir -p /data/murder && chown 65534:65534 /data/murder

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chown=65534:65534 /data /var/lib
COPY --from=build /murder /murder
USER 65534:65534
VOLUME /var/lib/murder
ENTRYPOINT ["/murder"]
CMD ["version"]
