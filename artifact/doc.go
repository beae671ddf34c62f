// Package artifact makes an OCI artifact of a folder of plain files, and the folder of the artifact again. It knows no
// network: pushing and fetching the blobs is up to its callers.
//
// The form is that of ORAS, so that either's artifacts can be had with the other: an image manifest (OCI 1.1) with an
// artifactType and the empty config, whose layers have the path of a file in the annotation
// org.opencontainers.image.title. A layer with the annotation io.deis.oras.content.unpack is a tar of what is in the
// folder that its title names.
//
// A file of 1 MiB or more is a layer of its own, byte for byte, and so is every file of a folder with few of them: what
// has not changed is neither pushed nor fetched again, and large ones arrive beside each other. Small files travel
// together in tars of some 4 MiB, with symlinks and empty folders; one that changes changes one tar. All follows from names,
// modes and bytes, so that the same folder is the same artifact, whoever pushes it and when; times and owners are not
// kept. The tars are not compressed (they are gzip, which ORAS asks for, of stored blocks): the bytes would depend on
// the compressor's version, and what is large among files has been compressed already.
//
// What comes out of an artifact never leaves the folder it is written to, see [Stage].
package artifact
