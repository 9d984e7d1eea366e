{{- define "tidemark.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "tidemark.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tidemark.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tidemark.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What runs: each block of the values, the service it is, its image, its command. */}}
{{- define "tidemark.services" -}}
pollerProducer: {name: poller-producer, image: poller-producer, command: [python, -m, services.poller_producer]}
s3Sink: {name: s3-sink, image: s3-sink, command: [python, -m, services.s3_sink]}
dynamoRetrier: {name: dynamo-retrier, image: dynamo-retrier, command: [python, -m, services.dynamo_retrier]}
staleNotifier: {name: stale-notifier, image: stale-notifier, command: [python, -m, services.stale_notifier]}
audit: {name: audit, image: cli, command: [python, -m, services.cli, audit, --watch]}
{{- end }}

{{/* (dict "root" $ "name" NAME) */}}
{{- define "tidemark.selector" -}}
app.kubernetes.io/name: {{ include "tidemark.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "tidemark.labels" -}}
{{ include "tidemark.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tidemark
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Lay .own over a copy of .common, maps key by key, into .into: sprig's merges would not let false or 0 win. */}}
{{- define "tidemark.overlay" -}}
{{- $into := .into -}}
{{- range $key, $value := deepCopy .common }}{{ $_ := set $into $key $value }}{{ end -}}
{{- range $key, $value := deepCopy .own -}}
{{- $below := get $into $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $below) -}}
{{- range $name, $one := $value }}{{ $_ := set $below $name $one }}{{ end -}}
{{- else -}}
{{- $_ := set $into $key $value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "of" BLOCK "image" NAME) */}}
{{- define "tidemark.image" -}}
{{- $own := .of.image | default dict -}}
{{- $all := .root.Values.image -}}
{{- $repository := get $own "repository" | default (printf "%s/%s" $all.repository .image) -}}
{{- $registry := get $own "registry" | default $all.registry -}}
{{- $at := printf ":%s" (get $own "tag" | default $all.tag | default .root.Chart.AppVersion) -}}
{{- if get $own "digest" }}{{ $at = printf "@%s" $own.digest }}{{ end -}}
{{- with $registry }}{{ . | trimSuffix "/" }}/{{ end }}{{ $repository }}{{ $at }}
{{- end }}

{{/* A setting's value as text: numbers as written (no 2.68e+08), lists by commas. */}}
{{- define "tidemark.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}{{ else if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* The settings of one component into .into: the common ones that it knows, then its own. (dict "root" "block" "into") */}}
{{- define "tidemark.config" -}}
{{- $into := .into -}}
{{- $known := (get (.root.Files.Get "files/settings.json" | fromJson) .block).settings -}}
{{- range $name, $value := .root.Values.config }}
{{- if and (has $name $known) (not (kindIs "invalid" $value)) }}{{ $_ := set $into $name $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := (get .root.Values .block).config }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $into $name $value }}{{ end -}}
{{- end -}}
{{- end }}

{{/* What secrets a component is given: those that its settings have a file for. JSON: [{name, secret, keys, variables}] */}}
{{- define "tidemark.credentials" -}}
{{- $known := (get (.root.Files.Get "files/settings.json" | fromJson) .block).settings -}}
{{- $files := dict "postgres" (dict "passwordKey" "password_file" "caKey" "ca_file")
                   "registry" (dict "passwordKey" "password_file" "caKey" "ca_file")
                   "kafka" (dict "passwordKey" "sasl_password_file" "caKey" "ca_file" "certKey" "cert_file" "keyKey" "key_file") -}}
{{- $found := list -}}
{{- range $edge := list "kafka" "postgres" "registry" }}
{{- $given := get $.root.Values.credentials $edge -}}
{{- $keys := list -}}
{{- $variables := dict -}}
{{- range $key, $setting := get $files $edge -}}
{{- $file := get $given $key -}}
{{- if and $file $given.existingSecret (has (printf "%s_%s" $edge $setting) $known) -}}
{{- $keys = append $keys $file -}}
{{- $_ := set $variables (printf "TIDEMARK_%s_%s" (upper $edge) (upper $setting)) (printf "/run/secrets/%s/%s" $edge $file) -}}
{{- end -}}
{{- end -}}
{{- if $keys }}{{ $found = append $found (dict "name" $edge "secret" $given.existingSecret "keys" (uniq $keys) "variables" $variables) }}{{ end -}}
{{- end -}}
{{- with .root.Values.credentials.aws -}}
{{- if .existingSecret -}}
{{- $file := printf "/run/secrets/aws/%s" .credentialsKey -}}
{{- $found = append $found (dict "name" "aws" "secret" .existingSecret "keys" (list .credentialsKey) "variables" (dict "AWS_SHARED_CREDENTIALS_FILE" $file)) -}}
{{- end -}}
{{- end -}}
{{- with .root.Values.credentials.sources.existingSecret }}{{ $found = append $found (dict "name" "sources" "secret" . "keys" list "variables" dict) }}{{ end -}}
{{- if eq .block "staleNotifier" -}}
{{- with .root.Values.credentials.owners.existingSecret }}{{ $found = append $found (dict "name" "owners" "secret" . "keys" list "variables" dict) }}{{ end -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{/* (dict "root" $ "block" BLOCK "of" its values); extra variables of the chart's own in "told" */}}
{{- define "tidemark.env" -}}
{{- $variables := dict "TIDEMARK_ENTITIES_DIR" "/etc/tidemark/entities" "TIDEMARK_CACHE_DIR" "/var/lib/tidemark/cache" -}}
{{- $config := dict -}}
{{- $_ := include "tidemark.config" (dict "root" .root "block" .block "into" $config) -}}
{{- range $name, $value := $config }}{{ $_ := set $variables (printf "TIDEMARK_%s" (upper $name)) (include "tidemark.text" $value) }}{{ end -}}
{{- range include "tidemark.credentials" . | fromJsonArray -}}
{{- range $name, $value := .variables }}{{ $_ := set $variables $name $value }}{{ end -}}
{{- end -}}
{{- with .root.Values.aws.region }}{{ $_ := set $variables "AWS_REGION" . }}{{ end -}}
{{- with .root.Values.aws.endpointUrl }}{{ $_ := set $variables "AWS_ENDPOINT_URL" . }}{{ end -}}
{{- range $name, $value := .told }}{{ $_ := set $variables $name $value }}{{ end -}}
{{- range $name, $value := .of.env }}{{ $_ := set $variables $name (include "tidemark.text" $value) }}{{ end -}}
{{- range $name := keys $variables | sortAlpha }}
- name: {{ $name }}
  value: {{ get $variables $name | quote }}
{{- end }}
{{- with .of.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The same, with "entities": the name of the ConfigMap */}}
{{- define "tidemark.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .of.tmp.sizeLimit }}}
- name: cache
  {{- if .of.cache.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .of.cache.existingClaim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .of.cache.sizeLimit }}}
  {{- end }}
- name: entities
  configMap: {name: {{ .entities }}}
{{- range include "tidemark.credentials" . | fromJsonArray }}
- name: secret-{{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    {{- with .keys }}
    items:
      {{- range . }}
      - {key: {{ . | quote }}, path: {{ . | quote }}}
      {{- end }}
    {{- end }}
{{- end }}
{{- with .of.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidemark.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/lib/tidemark/cache}
- {name: entities, mountPath: /etc/tidemark/entities, readOnly: true}
{{- range include "tidemark.credentials" . | fromJsonArray }}
- {name: secret-{{ .name }}, mountPath: /run/secrets/{{ .name }}, readOnly: true}
{{- end }}
{{- with .of.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidemark.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int .Values.podSecurity.runAsUser }}
runAsGroup: {{ int .Values.podSecurity.runAsGroup }}
fsGroup: {{ int .Values.podSecurity.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tidemark.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ int .Values.podSecurity.runAsUser }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Where the pod is put; spread constraints without a selector mean the component's own pods. */}}
{{- define "tidemark.placement" -}}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .of.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range .of.topologySpreadConstraints }}
{{- $one := deepCopy . }}
{{- if not (hasKey $one "labelSelector") }}{{ $_ := set $one "labelSelector" (dict "matchLabels" (include "tidemark.selector" $ | fromYaml)) }}{{ end }}
  - {{- toYaml $one | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tidemark.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tidemark.serviceAccount" -}}
{{- $made := printf "%s-%s" (include "tidemark.fullname" .root) .name -}}
{{- if .of.serviceAccount.create }}{{ .of.serviceAccount.name | default $made }}{{ else }}{{ .of.serviceAccount.name | default "default" }}{{ end -}}
{{- end }}

{{- define "tidemark.entities" -}}
{{- .Values.entities.existingConfigMap | default (printf "%s-entities" (include "tidemark.fullname" .)) -}}
{{- end }}

{{/* Changes when the entity files do, so that the pods are replaced: they read them at their start only. */}}
{{- define "tidemark.checksum" -}}
{{- dict "files" .Values.entities.files "map" .Values.entities.existingConfigMap "revision" .Values.entities.revision | toJson | sha256sum -}}
{{- end }}

{{/* Seconds from SIGTERM to SIGKILL: the drain, and what an exit takes after it. */}}
{{- define "tidemark.grace" -}}
{{- $config := dict -}}
{{- $_ := include "tidemark.config" (dict "root" .root "block" .block "into" $config) -}}
{{- $drain := get $config "drain_s" | default (get (.root.Files.Get "files/settings.json" | fromJson) .block).drain_s -}}
{{- add (ceil $drain | int) (int .root.Values.graceExtraSeconds) -}}
{{- end }}
