package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"
)

// configFlag names the file of [loadConfig].
const configFlag = "config"

// configurable lets every flag of cmd, and of its subcommands, be given by an environment variable or in the file of --config.
func configurable(cmd *cli.Command) {
	for _, sub := range cmd.Subcommands {
		configurable(sub)
	}
	if len(cmd.Subcommands) > 0 && len(cmd.Flags) == 0 {
		return
	}
	cmd.Flags = append(cmd.Flags, textOf(configFlag, "", "YAML `FILE` with the flags of this command", nil))
	for _, f := range cmd.Flags {
		addEnv(f)
	}
	before := cmd.Before
	cmd.Before = func(c *cli.Context) error {
		rank(c)
		if file := c.String(configFlag); file != "" {
			if err := loadConfig(c, file); err != nil {
				return err
			}
		}
		if before == nil {
			return nil
		}
		return before(c)
	}
}

// outranking is the key, in the app's metadata, of the flags that the command line or the environment has set, which beat the file.
const outranking = "flags that beat the file"

// rank notes which of limitNames beat the file, as long as it can be told.
func rank(c *cli.Context) {
	set := make(map[string]bool)
	for _, name := range limitNames {
		set[name] = c.IsSet(name)
	}
	c.App.Metadata[outranking] = set
}

// outranked tells whether what the file says of a limit does not count.
func outranked(c *cli.Context, name string) bool {
	set, _ := c.App.Metadata[outranking].(map[string]bool)
	return set[name]
}

// envName is the environment variable of a flag: MURDER_CACHE_SIZE for cache-size.
func envName(flag string) string {
	return "MURDER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// addEnv gives f its environment variable. The library keeps the names in each flag type apart, hence the switch.
func addEnv(f cli.Flag) {
	env := []string{envName(f.Names()[0])}
	switch f := f.(type) {
	case *cli.GenericFlag:
		f.EnvVars = append(env, f.EnvVars...)
	case *cli.StringSliceFlag:
		if f.EnvVars == nil {
			f.EnvVars = env
		}
	case *cli.StringFlag:
		f.EnvVars = env
	case *cli.PathFlag:
		f.EnvVars = env
	case *cli.BoolFlag:
		f.EnvVars = env
	case *cli.IntFlag:
		f.EnvVars = env
	case *cli.DurationFlag:
		f.EnvVars = env
	}
}

// loadConfig sets the flags of c's command that neither the command line nor the environment has set from a YAML file that maps their
// names to scalars or, for repeatable ones, lists. A key that is no flag of the command, and a value that its flag refuses, are usage
// errors; so is a file that cannot be read, since its name was given.
func loadConfig(c *cli.Context, file string) error {
	doc, err := readYAML(file)
	if err != nil {
		return usagef(c, "--%s: %v", configFlag, err)
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(doc.Content); i += 2 {
		key, value := doc.Content[i], doc.Content[i+1]
		if err := setFromConfig(c, key.Value, value, seen); err != nil {
			return usagef(c, "%s:%d: %v", file, key.Line, err)
		}
	}
	return nil
}

// readYAML returns the mapping that a YAML file holds; an empty file holds an empty one.
func readYAML(file string) (*yaml.Node, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var doc yaml.Node
	if err := yaml.NewDecoder(f).Decode(&doc); errors.Is(err, io.EOF) {
		return &yaml.Node{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.MappingNode:
		return root, nil
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null": // only comments, or "---"
		return &yaml.Node{}, nil
	default:
		return nil, fmt.Errorf("%s:%d: the file is a list of `key: value` lines", file, root.Line)
	}
}

func setFromConfig(c *cli.Context, key string, value *yaml.Node, seen map[string]bool) error {
	f := level{flags: c.Command.Flags}.flag(key)
	switch {
	case f == nil, key == configFlag, f == cli.HelpFlag:
		return fmt.Errorf("unknown key %q; `murder %s --help` lists what can be set", key, strings.TrimSuffix(commandPath(c), ": "))
	case seen[key]:
		return fmt.Errorf("key %q is there twice", key)
	}
	seen[key] = true
	items, err := scalars(value)
	_, isList := f.(cli.DocGenerationSliceFlag)
	switch {
	case err != nil:
		return fmt.Errorf("key %q: %w", key, err)
	case !isList && value.Kind == yaml.SequenceNode:
		return fmt.Errorf("key %q takes one value, not a list", key)
	case c.IsSet(key):
		return nil
	}
	for _, item := range items {
		if err := c.Set(key, item); err != nil {
			return fmt.Errorf("invalid value %q for key %q: %w", item, key, err)
		}
	}
	return nil
}

// scalars are the texts of a scalar or of a list of scalars.
func scalars(n *yaml.Node) ([]string, error) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return nil, errors.New("the value is missing")
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}, nil
	case n.Kind != yaml.SequenceNode:
		return nil, errors.New("the value is a mapping; it must be a scalar or a list")
	}
	var items []string
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return nil, errors.New("an item of the list is no scalar")
		}
		items = append(items, item.Value)
	}
	return items, nil
}
