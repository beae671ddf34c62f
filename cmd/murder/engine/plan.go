package engine

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/rogpeppe/go-internal/diff"
)

// Plan is a list of changes to files, not yet made. Notes are what the owner
// of the machine should know or do besides, one sentence or two each.
type Plan struct {
	Notes []string

	steps []step
}

// step is one file's part of a plan.
type step struct {
	file *file
	kind kind
	data []byte // the file's new content; of no meaning where it is removed
	rec  record // what a setup leaves beside the file
	why  string // for kind same: what there is to say about it
}

type kind int

const (
	same    kind = iota // nothing to do
	set                 // setup writes the file
	restore             // undo: the file as it was before setup
	cut                 // undo of a file edited since: without our part
	remove              // undo: the file was ours alone
	forget              // undo: the file is gone, only our notes about it are left
)

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool {
	return !slices.ContainsFunc(p.steps, func(s step) bool { return s.kind != same })
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// Diff prints what Run would change as a unified diff, and changes nothing.
func (p *Plan) Diff(w io.Writer) {
	for _, s := range p.steps {
		before, after := s.file.path, s.file.path
		if s.file.info == nil {
			before = os.DevNull
		}
		var data []byte
		switch s.kind {
		case same:
			fmt.Fprintf(w, "unchanged %s%s\n", s.file.path, s.why)
			continue
		case remove:
			after = os.DevNull
		case forget:
			fmt.Fprintf(w, "would forget %s, which is gone\n", s.file.path)
			continue
		default:
			data = s.data
		}
		w.Write(diff.Diff(before, s.file.data, after, data))
	}
}

// Run makes the changes, one file after the other, and prints a line for each
// as it is done. It stops at the first error; what is printed by then is done,
// and a second Setup or Undo goes on from there.
func (p *Plan) Run(w io.Writer) error {
	var folders []string
	for _, s := range p.steps {
		said, err := s.run()
		if err != nil {
			return err
		}
		fmt.Fprintln(w, said)
		if s.kind >= restore {
			folders = append(folders, s.file.folders()...)
		}
	}
	removeEmpty(folders)
	return nil
}

func (s step) run() (said string, err error) {
	f := s.file
	switch s.kind {
	case same:
		return "unchanged " + f.path + s.why, nil
	case set:
		if err := f.put(s.data, s.rec); err != nil {
			return "", err
		}
		if f.info == nil {
			return "made " + f.path, nil
		}
		if s.rec.Created {
			return "changed " + f.path, nil
		}
		return fmt.Sprintf("changed %s (as it was: %s)", f.path, f.path+backupSuffix), nil
	case restore:
		return "restored " + f.path + " as it was", f.takeBack(s.data)
	case cut:
		return "took murder's part out of " + f.path + ", which was edited since the setup", f.takeBack(s.data)
	case remove:
		return "removed " + f.path, f.removeAll()
	default:
		return "forgot " + f.path + ", which is gone", f.forget()
	}
}

// edit is how our part gets into a file and out again.
type edit struct {
	// add returns base with our part in it and what cut will need to know.
	// base holds none of it, and is empty for a file that does not exist.
	// Returning base itself means that the file does already what we want.
	add func(base []byte) ([]byte, record, error)
	// cut returns data without our part.
	cut func(data []byte, rec record) ([]byte, error)
	// blank reports whether data says nothing, so that a file that setup made
	// can go.
	blank func(data []byte) bool
}

// setup plans the step that brings our part into f.
func (p *Plan) setup(f *file, e edit) error {
	base := f.data
	if f.rec != nil {
		var err error
		if base, err = e.cut(f.data, *f.rec); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	data, rec, err := e.add(base)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	s := step{file: f, kind: set, data: data, rec: f.merge(rec, data)}
	switch {
	case f.info != nil && string(data) == string(f.data) && f.rec != nil:
		s.kind = same
	case f.info != nil && string(data) == string(f.data):
		s.kind, s.why = same, ": it points at the mirror already, though not by murder setup"
	}
	p.steps = append(p.steps, s)
	return nil
}

// undo plans the step that takes our part out of f.
func (p *Plan) undo(f *file, e edit) error {
	s := step{file: f}
	switch {
	case f.rec == nil:
		s.why = ": nothing of murder setup's in it"
	case f.info == nil:
		s.kind = forget
	case f.unedited() && f.rec.Created:
		s.kind = remove
	default:
		var err error
		if s.data, s.kind, err = f.before(e); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	p.steps = append(p.steps, s)
	return nil
}
