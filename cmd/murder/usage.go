package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// usageError is a mistake in how murder was called; the text names the mistake and what would be right. It ends with exit code 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// usagef is the usage error of the command that c runs.
func usagef(c *cli.Context, format string, args ...any) error {
	return &usageError{commandPath(c) + fmt.Sprintf(format, args...)}
}

// commandPath is the command that c runs, as the user types it but for the program's name, with a colon; "" at the root.
func commandPath(c *cli.Context) string {
	name := strings.TrimPrefix(c.Command.HelpName, c.App.Name)
	if name = strings.TrimSpace(name); name == "" {
		return ""
	}
	return name + ": "
}

// usageErrorOf turns what the flag parser says, which has been kept from the user's eyes until here, into a usage error.
func usageErrorOf(c *cli.Context, err error, _ bool) error {
	text := strings.Replace(err.Error(), " for flag -", " for --", 1) // the flag package's words
	text = strings.Replace(text, " as value for flag ", " as value for --", 1)
	return usagef(c, "%s", text)
}

// arrange returns args with the flags of each command before its arguments, where the library wants them, so that
// `murder prefetch IMAGE --timeout 5m` means what it says. It refuses unknown commands and flags and flags that lack their value.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return []string{app.Name}, nil
	}
	root := level{path: app.Name, flags: app.Flags, commands: app.Commands}
	rest, err := root.arrange(args[1:])
	return append([]string{args[0]}, rest...), err
}

// level is what a command accepts at one place of the command line.
type level struct {
	path     string // "murder setup"
	flags    []cli.Flag
	commands []*cli.Command
}

func (l level) arrange(args []string) ([]string, error) {
	var flags, rest []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case len(arg) > 1 && arg[0] == '-':
			n, err := l.flagLen(args[i:])
			if err != nil {
				return nil, err
			}
			flags = append(flags, args[i:i+n]...)
			i += n - 1
		case len(l.commands) > 0:
			sub, err := l.command(arg)
			if err != nil {
				return nil, err
			}
			below, err := sub.arrange(args[i+1:])
			return append(append(flags, arg), below...), err
		default:
			rest = append(rest, arg)
		}
	}
	if len(rest) > 0 {
		flags = append(append(flags, "--"), rest...)
	}
	return flags, nil
}

// flagLen is how many of args the flag at their head takes: one, or two with its value.
func (l level) flagLen(args []string) (int, error) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
	f := l.flag(name)
	switch {
	case f == nil:
		return 0, l.unknownFlag(name)
	case hasValue || !takesValue(f):
		return 1, nil
	case len(args) == 1:
		return 0, l.errorf("--%s needs a value", name)
	default:
		return 2, nil
	}
}

// flag finds a flag by its name; -h and --help exist everywhere, though the library adds them late.
func (l level) flag(name string) cli.Flag {
	for _, f := range append(l.flags, cli.HelpFlag) {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return !ok || d.TakesValue()
}

func (l level) command(name string) (level, error) {
	for _, c := range l.commands {
		if c.HasName(name) {
			return level{path: l.path + " " + name, flags: c.Flags, commands: c.Subcommands}, nil
		}
	}
	var names []string
	for _, c := range l.commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return level{}, l.errorf("unknown command %q; commands are %s", name, strings.Join(names, ", "))
}

func (l level) unknownFlag(name string) error {
	if len(l.commands) > 0 {
		return l.errorf("unknown flag --%s; a command's flags come after the command", name)
	}
	return l.errorf("unknown flag --%s; the nearest is %s, see `%s --help`", name, cli.SuggestFlag(l.flags, name, false), l.path)
}

func (l level) errorf(format string, args ...any) error {
	_, sub, ok := strings.Cut(l.path, " ")
	if ok {
		sub += ": "
	}
	return &usageError{sub + fmt.Sprintf(format, args...)}
}
