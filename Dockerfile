# The image holds the static binary and the CA certificates, nothing else.
# It runs as nobody; give it a writable /var/lib/murder.
#   docker build -t murder .
#   docker run --network host -v murder:/var/lib/murder murder mirror --seeder http://registry.example:7070
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /murder ./cmd/murder \
 && mkdir -p /data/murder && chown 65534:65534 /data/murder

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chown=65534:65534 /data /var/lib
COPY --from=build /murder /murder
USER 65534:65534
VOLUME /var/lib/murder
ENTRYPOINT ["/murder"]
CMD ["version"]
