import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='SessionRecord',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('endpoint', models.CharField(max_length=64, verbose_name='endpoint')),
                ('user_key', models.CharField(blank=True, default='', max_length=300, verbose_name='user key')),
                ('chat_key', models.CharField(blank=True, default='', max_length=256, verbose_name='chat key')),
                ('key', models.CharField(editable=False, max_length=64, null=True, unique=True, verbose_name='key digest')),
                ('session_id', models.CharField(max_length=256, verbose_name='session id')),
                ('opaque_id', models.CharField(editable=False, max_length=64, unique=True, verbose_name='opaque id')),
                ('state', models.TextField(blank=True, default='', verbose_name='state')),
                ('message_count', models.PositiveIntegerField(default=0, verbose_name='messages')),
                ('version', models.PositiveBigIntegerField(default=0, verbose_name='version')),
                ('claim_number', models.PositiveBigIntegerField(default=0, verbose_name='claim number')),
                ('claimed_by', models.PositiveBigIntegerField(blank=True, null=True, verbose_name='claimed by invocation')),
                ('claim_expires_at', models.DateTimeField(blank=True, null=True, verbose_name='claim expires')),
                ('created_at', models.DateTimeField(verbose_name='created')),
                ('updated_at', models.DateTimeField(db_index=True, verbose_name='last activity')),
                ('archived_at', models.DateTimeField(blank=True, null=True, verbose_name='archived')),
                ('user', models.ForeignKey(blank=True, db_constraint=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL, verbose_name='user')),
            ],
            options={
                'verbose_name': 'session',
                'verbose_name_plural': 'sessions',
            },
        ),
        migrations.CreateModel(
            name='InvocationRecord',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('endpoint', models.CharField(max_length=64, verbose_name='endpoint')),
                ('user_key', models.CharField(blank=True, default='', max_length=300, verbose_name='user key')),
                ('chat_key', models.CharField(blank=True, default='', max_length=256, verbose_name='chat key')),
                ('key', models.CharField(editable=False, max_length=64, unique=True, verbose_name='key digest')),
                ('invocation_id', models.CharField(max_length=256, verbose_name='invocation id')),
                ('correlation_id', models.CharField(editable=False, max_length=32, verbose_name='correlation id')),
                ('dialect', models.CharField(max_length=16, verbose_name='dialect')),
                ('stream', models.BooleanField(default=False, verbose_name='streamed')),
                ('background', models.BooleanField(default=False, verbose_name='background')),
                ('fingerprint', models.CharField(editable=False, max_length=64, verbose_name='body fingerprint')),
                ('session_id', models.CharField(blank=True, max_length=256, null=True, verbose_name='session id')),
                ('claim_number', models.PositiveBigIntegerField(default=0, editable=False, verbose_name='claim number')),
                ('status', models.CharField(choices=[('queued', 'queued'), ('running', 'running'), ('awaiting_input', 'awaiting input'), ('succeeded', 'succeeded'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('interrupted', 'interrupted')], max_length=16, verbose_name='status')),
                ('answer', models.TextField(blank=True, default='', verbose_name='answer')),
                ('error_code', models.CharField(blank=True, default='', max_length=64, verbose_name='error code')),
                ('error_status', models.PositiveSmallIntegerField(blank=True, null=True, verbose_name='error status')),
                ('usage', models.TextField(blank=True, default='', verbose_name='token usage')),
                ('total_tokens', models.PositiveBigIntegerField(blank=True, null=True, verbose_name='tokens')),
                ('metadata', models.TextField(blank=True, default='', verbose_name='metadata')),
                ('created_at', models.DateTimeField(verbose_name='created')),
                ('first_byte_at', models.DateTimeField(blank=True, null=True, verbose_name='first byte')),
                ('finished_at', models.DateTimeField(blank=True, null=True, verbose_name='finished')),
                ('user', models.ForeignKey(blank=True, db_constraint=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL, verbose_name='user')),
                ('session_record', models.ForeignKey(blank=True, db_constraint=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='invocations', to='invocations_app.sessionrecord', verbose_name='session')),
            ],
            options={
                'verbose_name': 'invocation',
                'verbose_name_plural': 'invocations',
            },
        ),
        migrations.CreateModel(
            name='MessageRecord',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('source_id', models.CharField(max_length=255, verbose_name='history provider')),
                ('position', models.PositiveIntegerField(verbose_name='position')),
                ('role', models.CharField(max_length=32, verbose_name='role')),
                ('payload', models.TextField(verbose_name='message')),
                ('created_at', models.DateTimeField(verbose_name='created')),
                ('invocation', models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='invocations_app.invocationrecord', verbose_name='invocation')),
                ('session', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='messages', to='invocations_app.sessionrecord', verbose_name='session')),
            ],
            options={
                'verbose_name': 'message',
                'verbose_name_plural': 'messages',
                'constraints': [models.UniqueConstraint(fields=('session', 'source_id', 'position'), name='invocations_message_place')],
            },
        ),
    ]
