# An image of one static binary and the roots of public trust, for a user without rights and a read-only root:
#   docker build --build-arg COUNTERSIGN_COMMIT="$(git rev-parse --short HEAD)" --tag countersign .
# It reads /etc/countersign/countersign.toml. `[admin] listen` must be set there for the health check, and 127.0.0.1 is the
# container's own: who calls shares its network namespace (config/compose.yaml), or the configuration says `allow_remote`.

# Any image with Rust, a C compiler, glibc's static library and /etc/ssl/certs.
ARG BUILDER=docker.io/library/rust:1-bookworm
FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
ARG COUNTERSIGN_COMMIT
# With --target the flags are not for build scripts, which a static C library would keep from loading anything. The paths of
# the builder have no business in the binary. Packed, relocations take a fiftieth of the room.
RUN target="$(rustc --version --verbose | sed -n 's/^host: //p')" \
    && RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=/crates" \
        cargo build --release --locked --target "$target" \
    && cp "target/$target/release/countersign" /countersign

# No nsswitch.conf: glibc's own default, files and dns, is all that a static binary can do.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /countersign /usr/bin/
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["countersign", "health"]
ENTRYPOINT ["countersign"]
CMD ["run", "-c", "/etc/countersign/countersign.toml"]
